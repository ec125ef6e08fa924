"""Why a model gave the class it gave: heat maps on the image."""
