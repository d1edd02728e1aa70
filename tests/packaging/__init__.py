"""What a user installs: metadata, the wheel and the sdist, and the commands in an environment without the checkout."""
