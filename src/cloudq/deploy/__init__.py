"""From the code to infrastructure: settings, the plan that they and the app make, and its checks. Pure but for reading pyproject.toml."""
