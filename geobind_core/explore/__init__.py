"""A local web page to search a space: type, drop or record a query, see the map, look at a place."""
