-- migrate:up

-- Production has no seeds, and these three are asked for by name.
INSERT INTO roles (name, description) VALUES
    ('admin', 'May do everything, for everybody.'),
    ('manager', 'Answers for vehicles, products and stock.'),
    ('member', 'May sign in and use the apps.')
ON CONFLICT DO NOTHING;

-- Outside of ASCII, lower() may make one of its letters of another: the Kelvin sign becomes k. An address that only
-- looks like somebody's must not become theirs; under "C" it stays what it is, and the CHECK refuses it.
CREATE OR REPLACE FUNCTION lower_email() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.email := lower(NEW.email COLLATE "C");
    RETURN NEW;
END
$$;

-- migrate:down

-- The roles stay: people may have them, and the seeds may have made them.
CREATE OR REPLACE FUNCTION lower_email() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.email := lower(NEW.email);
    RETURN NEW;
END
$$;
