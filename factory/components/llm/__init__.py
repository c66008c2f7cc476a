"""Language models that a model can be composed of. (OpenELM is not among them: transformers has no class for it.)"""
