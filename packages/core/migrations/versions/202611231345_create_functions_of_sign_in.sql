-- migrate:up

-- All that an app does with people's accounts. Each function runs with the rights of its owner, so that the role of an
-- app needs none on the tables: it can try one password, and cannot read a thousand hashes; it can sign somebody out,
-- and cannot make them admin. None writes roles, is_active, or an address.
--
-- Names are written out, and public is not searched: whoever can create something there would have the owner run it.
-- Whatever changes a user's tokens locks the user's row first. So no two of these wait for each other in a circle, and
-- nobody gets a token while they are signed out everywhere. Tokens come here as hashes, and never themselves.

CREATE SCHEMA auth;
COMMENT ON SCHEMA auth IS 'What apps may do with accounts, as functions; they need no right on the tables.';

-- The limits stand here and are no parameter: an app that is broken into cannot lift them. Each attempt raises a level
-- by one, and time lowers it by one in `leak` seconds. From `burst` on one waits, twice as long each time, for `leak`
-- seconds at most; in the long run that is one attempt in `leak` seconds.
--
-- both: one account from one address, which stops whoever guesses and nobody else. account: from all addresses, against
-- many that guess together (NIST SP 800-63B allows 100); it does not hold for an address from which the owner has
-- signed in, so that nobody can lock them out from elsewhere. source: one address, whatever accounts it tries.
CREATE FUNCTION auth.limits(kind text, email text, source text)
    RETURNS TABLE (scope text, subject bytea, burst double precision, leak double precision)
    LANGUAGE sql STABLE ROWS 3 AS $$
    SELECT l.scope,
           sha256(convert_to(jsonb_build_array($1, l.scope, CASE WHEN l.scope <> 'source' THEN $2 END,
                                               CASE WHEN l.scope <> 'account' THEN $3 END)::text, 'UTF8')),
           l.burst, l.leak
    FROM (VALUES (1, 'sign-in', 'both', 5::double precision, 900::double precision),
                 (2, 'sign-in', 'account', 100, 3600),
                 (3, 'sign-in', 'source', 50, 30),
                 (1, 'mail', 'both', 3, 1200),
                 (2, 'mail', 'account', 10, 3600),
                 (3, 'mail', 'source', 20, 120)) AS l (place, kind, scope, burst, leak)
    WHERE l.kind = $1 AND (l.scope <> 'source' OR $3 <> '')
    ORDER BY l.place
$$;
COMMENT ON FUNCTION auth.limits IS 'The limits that hold for an attempt, and under which key each is counted.';

-- Counted before the password is looked at, and taken back after a success: of a hundred that come at once only so many
-- as the limit allows are tried.
CREATE FUNCTION auth.attempt(kind text, email text, source text) RETURNS double precision
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    limit_ record;
    seen public.attempts;
    waits double precision := 0;
    is_trusted boolean := false;
BEGIN
    -- First a look at all of them, so that who has to wait for one is counted by none.
    FOR limit_ IN SELECT * FROM auth.limits(kind, email, source) LOOP
        CONTINUE WHEN limit_.scope = 'account' AND is_trusted;
        SELECT * INTO seen FROM public.attempts WHERE subject = limit_.subject;
        CONTINUE WHEN NOT FOUND;
        is_trusted := is_trusted OR coalesce(seen.trusted_until > clock_timestamp(), false);
        IF seen.level > limit_.burst - 1 THEN
            waits := greatest(waits, least(limit_.leak, 2 ^ least(seen.level - limit_.burst, 30))
                                     - extract(epoch FROM clock_timestamp() - seen.counted_at));
        END IF;
    END LOOP;
    IF waits > 0 THEN
        RETURN waits;
    END IF;
    -- Everybody in the same order: both, account, source.
    FOR limit_ IN SELECT * FROM auth.limits(kind, email, source) LOOP
        CONTINUE WHEN limit_.scope = 'account' AND is_trusted;
        INSERT INTO public.attempts AS a (subject, level, counted_at) VALUES (limit_.subject, 1, clock_timestamp())
        ON CONFLICT (subject) DO UPDATE
            SET level = greatest(0, a.level - extract(epoch FROM excluded.counted_at - a.counted_at) / limit_.leak) + 1,
                counted_at = excluded.counted_at
            WHERE a.level <= limit_.burst - 1
               OR least(limit_.leak, 2 ^ least(a.level - limit_.burst, 30))
                  <= extract(epoch FROM excluded.counted_at - a.counted_at);
        IF NOT FOUND THEN
            RETURN 1;  -- somebody else has come first, since the look
        END IF;
    END LOOP;
    RETURN 0;
END
$$;
COMMENT ON FUNCTION auth.attempt IS 'Count an attempt, 0, or return for how many seconds there may be none.';

CREATE FUNCTION auth.credentials(email text, source text,
                                 OUT wait double precision, OUT user_id uuid, OUT name text, OUT password_hash text,
                                 OUT is_usable boolean)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    wait := auth.attempt('sign-in', $1, $2);
    IF wait = 0 THEN
        SELECT u.id, u.name, u.password_hash, u.is_active AND u.email_verified
        INTO user_id, name, password_hash, is_usable
        FROM public.users u WHERE u.email = $1;
    END IF;
END
$$;
COMMENT ON FUNCTION auth.credentials IS 'Count an attempt, and return what it takes to check one password.';

-- `seen_hash` is what the password was checked against: where it has changed meanwhile, or the account been closed,
-- nothing is signed in.
CREATE FUNCTION auth.sign_in(email text, source text, seen_hash text, new_hash text, family_id uuid, access_hash text,
                             access_seconds double precision, refresh_hash text, refresh_seconds double precision)
    RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    user_ uuid;
    limit_ record;
    was_trusted boolean := false;
BEGIN
    UPDATE public.users u SET last_login_at = now(), password_hash = coalesce($4, u.password_hash)
    WHERE u.email = $1 AND u.password_hash = $3 AND u.is_active AND u.email_verified
    RETURNING u.id INTO user_;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO public.auth_tokens (user_id, token_type, token_hash, expires_at, family_id)
    VALUES (user_, 'access', access_hash, auth.expiry('access', access_seconds), $5),
           (user_, 'refresh', refresh_hash, auth.expiry('refresh', refresh_seconds), $5);
    -- Only this attempt is taken back from the account and the address: else whoever has one account of their own could
    -- guess at others for ever, and each sign-in of the owner would give the others another hundred.
    FOR limit_ IN SELECT * FROM auth.limits('sign-in', $1, $2) LOOP
        IF limit_.scope = 'both' THEN
            SELECT coalesce(a.trusted_until > now(), false) INTO was_trusted
            FROM public.attempts a WHERE a.subject = limit_.subject;
            UPDATE public.attempts a SET level = 0, trusted_until = now() + interval '30 days'
            WHERE a.subject = limit_.subject;
        ELSIF limit_.scope = 'source' OR NOT was_trusted THEN
            UPDATE public.attempts a SET level = greatest(0, a.level - 1) WHERE a.subject = limit_.subject;
        END IF;
    END LOOP;
    RETURN true;
END
$$;
COMMENT ON FUNCTION auth.sign_in IS 'Begin a family of tokens for a user whose password was checked.';

-- The longest that each is good for. An app says how long, but one that is broken into cannot make itself tokens that
-- outlive the mending by years.
CREATE FUNCTION auth.expiry(token_type text, seconds double precision) RETURNS timestamptz
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    longest double precision := CASE token_type WHEN 'access' THEN 3600 WHEN 'refresh' THEN 30 * 86400
                                WHEN 'email_verification' THEN 7 * 86400 WHEN 'password_reset' THEN 86400 END;
BEGIN
    -- Nothing and NaN are not between.
    IF (seconds BETWEEN 0 AND longest) IS NOT TRUE THEN
        RAISE EXCEPTION 'a token of type % is good for 0 to % seconds, and not for %', token_type, longest, seconds
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN now() + make_interval(secs => seconds);
END
$$;
COMMENT ON FUNCTION auth.expiry IS 'When a token of a type expires that is to be good for so many seconds.';

-- Every request asks this. plpgsql keeps the plan for as long as a connection lives, where sql plans anew before
-- PostgreSQL 18; and left to itself the server takes the plan for one hash to be cheaper, and plans it each time.
CREATE FUNCTION auth.identity(token_hash text) RETURNS TABLE (user_id uuid, email text, name text, roles text[])
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 1
    SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    RETURN QUERY
    SELECT u.id, u.email, u.name,
           ARRAY(SELECT r.name FROM public.user_roles ur JOIN public.roles r ON r.id = ur.role_id
                 WHERE ur.user_id = u.id ORDER BY r.name)
    FROM public.auth_tokens t JOIN public.users u ON u.id = t.user_id
    WHERE t.token_hash = $1 AND t.token_type = 'access' AND t.revoked_at IS NULL AND t.expires_at > now()
      AND u.is_active;
END
$$;
COMMENT ON FUNCTION auth.identity IS 'Who shows an access token, and their roles; no row where it is not good.';

-- Many at once: to write it with each request would cost more than the request. Rows that somebody else has locked, who
-- revokes them or writes the same, are not waited for.
CREATE FUNCTION auth.shown(token_hashes text[]) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE public.auth_tokens t SET last_used_at = now()
    WHERE t.id IN (SELECT s.id FROM public.auth_tokens s
                   WHERE s.token_hash = ANY ($1) AND s.token_type = 'access' FOR NO KEY UPDATE SKIP LOCKED)
$$;
COMMENT ON FUNCTION auth.shown IS 'Keep that access tokens were shown.';

-- A refresh token that was used before has been stolen, from its owner or by them: all that came of its sign-in ends.
-- That is to be committed, so it is an answer and not an error.
CREATE FUNCTION auth.refresh(old_hash text, access_hash text, access_seconds double precision, new_hash text,
                             OUT outcome text, OUT user_id uuid)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    shown public.auth_tokens;
BEGIN
    outcome := 'refused';
    SELECT * INTO shown FROM public.auth_tokens t WHERE t.token_hash = old_hash AND t.token_type = 'refresh';
    PERFORM FROM public.users u WHERE u.id = shown.user_id AND u.is_active FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- Again, now that nobody else changes it. A family is never of nothing, not even of a token from older data that
    -- has none: all without one are one family.
    SELECT * INTO shown FROM public.auth_tokens t WHERE t.id = shown.id;
    IF shown.last_used_at IS NOT NULL THEN
        UPDATE public.auth_tokens t SET revoked_at = now()
        WHERE t.user_id = shown.user_id AND t.family_id IS NOT DISTINCT FROM shown.family_id
          AND t.token_type IN ('access', 'refresh') AND t.revoked_at IS NULL;
        outcome := 'reused';
    ELSIF shown.revoked_at IS NULL AND shown.expires_at > now() THEN
        UPDATE public.auth_tokens t SET last_used_at = now() WHERE t.id = shown.id;
        -- The new one ends when the old one would have: a sign-in has an end, however often it is refreshed.
        INSERT INTO public.auth_tokens (user_id, token_type, token_hash, expires_at, family_id)
        VALUES (shown.user_id, 'access', access_hash, auth.expiry('access', access_seconds), shown.family_id),
               (shown.user_id, 'refresh', new_hash, shown.expires_at, shown.family_id);
        outcome := 'refreshed';
        user_id := shown.user_id;
    END IF;
END
$$;
COMMENT ON FUNCTION auth.refresh IS 'Exchange a refresh token: refreshed, refused, or reused, which ends its family.';

CREATE FUNCTION auth.sign_out(access_hash text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    shown public.auth_tokens;
BEGIN
    SELECT * INTO shown FROM public.auth_tokens t
    WHERE t.token_hash = access_hash AND t.token_type = 'access' AND t.revoked_at IS NULL AND t.expires_at > now();
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM FROM public.users u WHERE u.id = shown.user_id FOR NO KEY UPDATE;
    UPDATE public.auth_tokens t SET revoked_at = now()
    WHERE t.user_id = shown.user_id AND t.family_id IS NOT DISTINCT FROM shown.family_id
      AND t.token_type IN ('access', 'refresh') AND t.revoked_at IS NULL;
    RETURN true;
END
$$;
COMMENT ON FUNCTION auth.sign_out IS 'End the sign-in that an access token comes from.';

CREATE FUNCTION auth.sign_out_everywhere(user_id uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM public.users u WHERE u.id = $1 FOR NO KEY UPDATE;
    UPDATE public.auth_tokens t SET revoked_at = now() WHERE t.user_id = $1 AND t.revoked_at IS NULL;
END
$$;
COMMENT ON FUNCTION auth.sign_out_everywhere IS 'Revoke all tokens of a user.';

-- An address that is taken gets a token to set a password with, and what waits to be verified no longer can be: so
-- whoever registers somebody else's address gets nothing, since only its owner reads on.
CREATE FUNCTION auth.register(email text, password_hash text, name text, verification_hash text,
                              verification_seconds double precision, reset_hash text, reset_seconds double precision,
                              OUT is_new boolean, OUT known_name text)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    user_ uuid;
BEGIN
    INSERT INTO public.users AS u (email, password_hash, name) VALUES ($1, $2, $3)
    ON CONFLICT ON CONSTRAINT uq_users_email DO NOTHING
    RETURNING u.id, u.name INTO user_, known_name;
    is_new := FOUND;
    IF is_new THEN
        INSERT INTO public.auth_tokens (user_id, token_type, token_hash, expires_at)
        VALUES (user_, 'email_verification', verification_hash, auth.expiry('email_verification', verification_seconds));
        RETURN;
    END IF;
    SELECT u.id, u.name INTO user_, known_name FROM public.users u WHERE u.email = $1 FOR NO KEY UPDATE;
    UPDATE public.auth_tokens t SET revoked_at = now()
    WHERE t.user_id = user_ AND t.token_type = 'email_verification' AND t.revoked_at IS NULL;
    INSERT INTO public.auth_tokens (user_id, token_type, token_hash, expires_at)
    VALUES (user_, 'password_reset', reset_hash, auth.expiry('password_reset', reset_seconds));
END
$$;
COMMENT ON FUNCTION auth.register IS 'Make a user, or where the address is taken a token for its owner.';

CREATE FUNCTION auth.begin_reset(email text, reset_hash text, reset_seconds double precision) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_ public.users;
BEGIN
    SELECT * INTO found_ FROM public.users u WHERE u.email = $1 AND u.is_active FOR NO KEY UPDATE;
    IF FOUND THEN
        INSERT INTO public.auth_tokens (user_id, token_type, token_hash, expires_at)
        VALUES (found_.id, 'password_reset', reset_hash, auth.expiry('password_reset', reset_seconds));
    END IF;
    RETURN found_.name;
END
$$;
COMMENT ON FUNCTION auth.begin_reset IS 'Store a token to set a password with; the name of the user, NULL for nobody.';

-- Whoever holds the token may know whose it is: it came by mail to them.
CREATE FUNCTION auth.reset_owner(reset_hash text) RETURNS TABLE (email text, name text)
    LANGUAGE sql STABLE SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp AS $$
    SELECT u.email, u.name FROM public.auth_tokens t JOIN public.users u ON u.id = t.user_id
    WHERE t.token_hash = $1 AND t.token_type = 'password_reset' AND t.last_used_at IS NULL AND t.revoked_at IS NULL
      AND t.expires_at > now() AND u.is_active
$$;
COMMENT ON FUNCTION auth.reset_owner IS 'Whose token to set a password with it is; no row where it is not good.';

CREATE FUNCTION auth.verify_email(verification_hash text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    user_ uuid;
BEGIN
    SELECT t.user_id INTO user_ FROM public.auth_tokens t
    WHERE t.token_hash = $1 AND t.token_type = 'email_verification';
    PERFORM FROM public.users u WHERE u.id = user_ AND u.is_active FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE public.auth_tokens t SET last_used_at = now()
    WHERE t.token_hash = $1 AND t.last_used_at IS NULL AND t.revoked_at IS NULL AND t.expires_at > now();
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE public.users u SET email_verified = true WHERE u.id = user_;
    RETURN true;
END
$$;
COMMENT ON FUNCTION auth.verify_email IS 'Spend a token that came by mail, which shows that the address is theirs.';

-- The mail has shown that the address is theirs, so it counts as verified too.
CREATE FUNCTION auth.reset_password(reset_hash text, password_hash text, source text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    owner_ public.users;
BEGIN
    SELECT u.* INTO owner_ FROM public.users u JOIN public.auth_tokens t ON t.user_id = u.id
    WHERE t.token_hash = $1 AND t.token_type = 'password_reset' AND u.is_active FOR NO KEY UPDATE OF u;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE public.auth_tokens t SET last_used_at = now()
    WHERE t.token_hash = $1 AND t.last_used_at IS NULL AND t.revoked_at IS NULL AND t.expires_at > now();
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE public.users u SET password_hash = $2, email_verified = true WHERE u.id = owner_.id;
    PERFORM auth.sign_out_everywhere(owner_.id);
    -- Guessing begins anew with a new password, so its owner does not wait for what others have tried.
    DELETE FROM public.attempts a USING auth.limits('sign-in', owner_.email, $3) l
    WHERE a.subject = l.subject AND l.scope <> 'source';
    RETURN true;
END
$$;
COMMENT ON FUNCTION auth.reset_password IS 'Spend a token that came by mail on a new password, and sign out everywhere.';

CREATE FUNCTION auth.change_password(email text, source text, seen_hash text, new_hash text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    user_ uuid;
BEGIN
    UPDATE public.users u SET password_hash = $4
    WHERE u.email = $1 AND u.password_hash = $3 AND u.is_active AND u.email_verified
    RETURNING u.id INTO user_;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM auth.sign_out_everywhere(user_);
    -- The attempt is taken back where it stops one soonest. Elsewhere it is one too many, and sinks with time.
    UPDATE public.attempts a SET level = 0
    FROM auth.limits('sign-in', $1, $2) l WHERE a.subject = l.subject AND l.scope = 'both';
    RETURN true;
END
$$;
COMMENT ON FUNCTION auth.change_password IS 'Set a new password in place of the one that was checked; sign out everywhere.';

-- PostgreSQL lets everybody execute what is new. `atriz grant` gives the functions to the roles of apps.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA auth FROM PUBLIC;

-- migrate:down

DROP FUNCTION auth.change_password(text, text, text, text);
DROP FUNCTION auth.reset_password(text, text, text);
DROP FUNCTION auth.verify_email(text);
DROP FUNCTION auth.reset_owner(text);
DROP FUNCTION auth.begin_reset(text, text, double precision);
DROP FUNCTION auth.register(text, text, text, text, double precision, text, double precision);
DROP FUNCTION auth.sign_out_everywhere(uuid);
DROP FUNCTION auth.sign_out(text);
DROP FUNCTION auth.refresh(text, text, double precision, text);
DROP FUNCTION auth.shown(text[]);
DROP FUNCTION auth.identity(text);
DROP FUNCTION auth.expiry(text, double precision);
DROP FUNCTION auth.sign_in(text, text, text, text, uuid, text, double precision, text, double precision);
DROP FUNCTION auth.credentials(text, text);
DROP FUNCTION auth.attempt(text, text, text);
DROP FUNCTION auth.limits(text, text, text);
DROP SCHEMA auth;
