"""Parts of a multimodal model, one registered file each; factory.model.compose puts them together."""
