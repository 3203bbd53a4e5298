-- migrate:up

-- Whoever writes Ada@Example.com means ada@example.com. Lowered here rather than refused, so that no writer
-- (an import, psql, an app in another language) has to know; the CHECK stays as what holds without triggers.
CREATE FUNCTION lower_email() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.email := lower(NEW.email);
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION lower_email() IS 'Lowers email, as a BEFORE INSERT OR UPDATE trigger.';

CREATE TRIGGER lower_email BEFORE INSERT OR UPDATE OF email ON users
    FOR EACH ROW EXECUTE FUNCTION lower_email();

CREATE FUNCTION set_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION set_updated_at() IS 'Keeps updated_at, as a BEFORE UPDATE trigger.';

CREATE TRIGGER set_updated_at BEFORE UPDATE ON users
    FOR EACH ROW EXECUTE FUNCTION set_updated_at();

-- migrate:down

DROP TRIGGER set_updated_at ON users;
DROP FUNCTION set_updated_at();
DROP TRIGGER lower_email ON users;
DROP FUNCTION lower_email();
