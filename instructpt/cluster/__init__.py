"""A plan as Kubernetes objects, and what is seen of them: the second executor, shared by the operator and the CLI."""
