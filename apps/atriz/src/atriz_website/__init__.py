"""Own the website's data: how people show themselves and what they prefer (database ``atriz_db``).

`atriz_website.models` holds the tables.
"""
