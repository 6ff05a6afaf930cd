"""A local web page to ask a space questions."""
