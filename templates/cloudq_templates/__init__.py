"""The files that `cloudq deploy` and `cloudq init` render, a folder per target; read them by importlib.resources."""
