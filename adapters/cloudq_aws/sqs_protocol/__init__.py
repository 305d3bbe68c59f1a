"""SQS's side of its JSON protocol over a memory broker: what each action does, and what it refuses with which code."""
