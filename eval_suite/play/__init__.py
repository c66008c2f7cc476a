"""The playground: one prompt, answered as the model is and steered, with what lies behind the answers.

``session`` is all that it does, without a page; ``page`` shows it with Gradio, the extra ``play``.
"""
