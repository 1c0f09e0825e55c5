from .views import blueprint, imports

__all__ = ["blueprint", "imports"]
