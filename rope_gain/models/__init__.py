"""The Hugging Face adapters, one module a family. Imported only when a model of the family is at hand."""
