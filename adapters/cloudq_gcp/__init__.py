"""cloudq on Google Cloud: each module is an adapter, and importing one loads none of Google's libraries."""
