"""Where our code runs in Megatron's training loop: ``observers.py`` has the events, ``step_hooks.py`` finds them."""
