"""Own who people are and what they may do: users, tokens, roles (database ``atriz_shared``).

`atriz_core.models` holds the tables, `atriz_core.accounts` signs people in, `atriz_core.web` does so over HTTP, and
`atriz_core.development` has the people every development database knows.
Nothing is imported here: seeds of other packages need `atriz_core.development`, and that needs no SQLAlchemy.
"""
