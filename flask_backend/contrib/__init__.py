"""Integrations with other projects. Each needs the extra of its name, and only its own import loads that project."""
