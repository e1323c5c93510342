"""The reports of run folders: tables, a page with plots, a model card."""
