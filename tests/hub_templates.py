"""Chat templates of the hub, each with where its text is from: (S) transformers' scripts that made the hub's files;
(H) a file of the hub, by repository; (M) memory, not checked.
"""

LLAVA_TEMPLATE = (  # (H) llava-1.5-7b-hf, chat_template.json
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}{% for content in"
    " message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}{% else %}{%"
    " for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] +"
    " ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{%"
    " endif %}"
)
MISTRAL_TEMPLATE = (  # (H) Farzad-R/llava-v1.6-mistral-7b-cordv2 and bakLlava-v1-hf, chat_template.json
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}{# Render all images first #}{% for"
    " content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}{# Render"
    " all text next #}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{"
    " content['text'] }}{% endfor %}{{' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' +"
    " message['content'][0]['text'] + '<\\\\s> '}}{% else %}{{ raise_exception('Only user and assistant roles are"
    " supported!') }}{% endif %}{% endfor %}"
)
ONEVISION_TEMPLATE = (  # (S)
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{# Render all images first #}{% for"
    " content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}{# Render"
    " all video then #}{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{"
    " '<video>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}{% for content in"
    " message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}{% else %}{% for"
    " content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] }}{%"
    " endgeneration %}{% endfor %}{% endif %}{{'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{"
    " '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN2_TEMPLATE = (  # (H) Qwen2-VL-7B-Instruct, chat_template.json at db8ce50; videos and numbered pictures left out
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a"
    " helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string"
    " %}{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] =="
    " 'image' or 'image' in content or 'image_url' in content %}<|vision_start|><|image_pad|><|vision_end|>{% elif"
    " 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if"
    " add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3_TEMPLATE = (  # (M): what it writes without tools
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for content in message['content'] %}{% if"
    " content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{"
    " content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt"
    " %}<|im_start|>assistant\n{% endif %}"
)
QWEN35_TEMPLATE = (  # (M): what it writes without tools; before the last answer stands an empty thought
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' and loop.last"
    " %}<think>\n\n</think>\n\n{% endif %}{% for content in message['content'] %}{% if content['type'] == 'image'"
    " %}<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% if"
    " enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
    "{% endif %}"
)
INTERNVL_TEMPLATE = (  # (S); the image token was '<image>' in the script's first version
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}{{"
    " message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}{{"
    " '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}{% elif content['type'] == 'text' %}{{"
    " content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt"
    " %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
IDEFICS3_TEMPLATE = (  # (H) SmolVLM-Base and SmolVLM-Instruct at 1b1b4a5, whose first template was Idefics3's
    "<|begin_of_text|>{% for message in messages %}{{message['role'].capitalize()}}{% if message['content'][0]['type']"
    " == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] =="
    " 'text' %}{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor"
    " %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SMOLVLM_TEMPLATE = IDEFICS3_TEMPLATE.replace("<|begin_of_text|>", "<|im_start|>")  # (H) SmolVLM2-2.2B-Instruct
GEMMA3_TEMPLATE = (  # (S)
    "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n{%- set first_user_prefix ="
    " messages[0]['content'][0]['text'] + '\n\n' -%}\n{%- set loop_messages = messages[1:] -%}\n{%- else -%}\n{%- set"
    " first_user_prefix = '' -%}\n{%- set loop_messages = messages -%}\n{%- endif -%}\n{%- for message in"
    " loop_messages -%}\n{%- if (message['role'] == 'assistant') -%}\n{%- set role = 'model' -%}\n{%- else -%}\n{%- set"
    " role = message['role'] -%}\n{%- endif -%}\n{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first"
    " else '') }}\n{%- for item in message['content'] -%}\n{%- if item['type'] == 'image' -%}\n{{ '<start_of_image>'"
    " }}\n{%- elif item['type'] == 'text' -%}\n{{ item['text'] | trim }}\n{%- endif -%}\n{%- endfor -%}\n{{"
    " '<end_of_turn>\n' }}\n{%- endfor -%}\n{%- if add_generation_prompt -%}\n{{'<start_of_turn>model\n'}}\n{%- endif"
    " -%}\n"
)
DEEPSEEK_TEMPLATE = (  # the wording of lmdeploy's test of deepseek-vl, put into a template
    "{{ bos_token }}You are a helpful language and vision assistant. You are able to understand the visual content that"
    " the user provides, and assist the user with a variety of tasks using natural language.\n\n{% for m in messages"
    " %}{{ 'User: ' if m['role'] == 'user' else 'Assistant: ' }}{% for c in m['content'] %}{{ '<image_placeholder>' if"
    " c['type'] == 'image' else c['text'] }}{% endfor %}{{ '\n\n' if m['role'] == 'user' else eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
PIXTRAL_TEMPLATE = (  # (M): what it writes of user and assistant
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]{% for content in"
    " message['content'] %}{% if content['type'] == 'image' %}[IMG]{% else %}{{ content['text'] }}{% endif %}{% endfor"
    " %}[/INST]{% else %}{{ message['content'][0]['text'] + eos_token }}{% endif %}{% endfor %}"
)
GLM_TEMPLATE = (  # (M), and as tests of other tools show its parts
    "[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n{% for content in message['content'] %}{% if"
    " content['type'] == 'image' %}<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ content['text'] }}{% endif"
    " %}{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
