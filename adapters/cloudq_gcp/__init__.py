"""Google's adapter (Pub/Sub, Firestore, Cloud Tasks, Cloud Scheduler) comes with a later version; the name is held for it."""
