"""The API: five kinds as pydantic models, the RunSpec, and the CRDs generated from them."""
