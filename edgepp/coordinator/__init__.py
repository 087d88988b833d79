"""The coordinator of a cluster: members, plans, pipelines, and the answers for many clients."""
