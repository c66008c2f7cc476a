"""The engine: recipes, models, steering, training and runs; plugins are found through the registry."""

import logging

logging.getLogger("bitsandbytes").setLevel(
    logging.ERROR
)  # it warns at each int8 product, and of kernels it did not download
