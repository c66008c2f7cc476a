"""Chat templates with images, in the form each language model knows. The images of a turn stand before its texts, as
the released code of LLaVA and TinyLLaVA writes them.
"""

IMAGES = "{% for c in m['content'] if c['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
TEXTS = "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"

VICUNA = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ ' ' + m['content'][0]['text'] + eos_token }}"
    "{% else %}{{ 'USER: ' if m['role'] == 'user' else '' }}"
    + IMAGES
    + "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endfor %}"
    "{{ 'ASSISTANT:' if m['role'] == 'user' and not loop.last else '' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    + IMAGES
    + TEXTS
    + "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') +"
    " '\n' }}"
    + IMAGES
    + TEXTS
    + "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QUESTION_ANSWER = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'Answer: ' + m['content'] + eos_token + '\n' }}"
    "{% else %}{{ ('Question: ' if m['role'] == 'user' else '') + m['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)
"""For language models that come without a template, as GPT-2 and OPT: it takes the words of a turn as one text."""
