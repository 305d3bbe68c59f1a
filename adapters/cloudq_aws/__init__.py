"""cloudq on AWS: each module is an adapter, and importing one loads no AWS SDK."""
