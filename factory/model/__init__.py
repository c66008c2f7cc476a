"""One checked view of any multimodal model: layers, roles, prefill and extend on a KV cache."""
