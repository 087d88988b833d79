"""The coordinator as a service: a cluster's members, its plan, and the requests of many clients."""
