"""What is in a database, read from PostgreSQL's system catalogs as text, and how two databases differ.

On one server the same thing has the same text, whatever the order in which it came about and whoever looks. What only
a server's administrator makes is left out (tablespaces, publications, event triggers, foreign servers), and so are
operators, casts, and what tunes a single column (storage, statistics target).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import psycopg

from atriz_database.databases import Connection

KINDS = frozenset(
    [
        "schema",
        "extension",
        "table",
        "setting",
        "column",
        "constraint",
        "index",
        "sequence",
        "view",
        "enum",
        "domain",
        "type",
        "function",
        "trigger",
        "rule",
        "policy",
        "statistics",
        "comment",
        "grant",
        "partition",
    ]
)
"""All kinds of objects.

``setting`` is what ALTER TABLE … SET sets: storage parameters, row level security, replica identity. Whatever belongs
to a partition is of kind ``partition``, its name with the other kind before it (``index sales_2026_pkey``).
"""


class Identity(NamedTuple):
    """What an object is called, as PostgreSQL quotes it; schema ``public`` is left out of names."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


Catalog = Mapping[Identity, str]
"""Definitions, by what they define."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One object that two databases do not have alike."""

    identity: Identity
    left: str | None
    """Its definition on the left side, `None` where it is missing there."""
    right: str | None

    def __str__(self) -> str:
        if "\n" in f"{self.left}{self.right}" and self.left is not None and self.right is not None:
            return f"{self.identity}: differs"
        left, right = (" ".join((side or "missing").split()) for side in (self.left, self.right))
        return f"{self.identity}: {left} -> {right}"

    def diff(self, left: str = "left", right: str = "right") -> str:
        """Return the two definitions as a unified diff, the sides called `left` and `right`."""
        before, after = (self.left or "").splitlines(), (self.right or "").splitlines()
        names = f"{left}: {self.identity}", f"{right}: {self.identity}"
        return "\n".join(difflib.unified_diff(before, after, *names, lineterm=""))


def compare(left: Catalog, right: Catalog, kinds: Collection[str] | None = None) -> list[Difference]:
    """Return what differs between two catalogs of one server, in order of kind and name.

    :param kinds: the kinds to compare, all where not given.
    """
    return [
        Difference(identity, left.get(identity), right.get(identity))
        for identity in sorted(left.keys() | right.keys())
        if (kinds is None or identity.kind in kinds) and left.get(identity) != right.get(identity)
    ]


def read(connection: Connection, schemas: Collection[str] | None = None) -> Catalog:
    """Return what is in the connected database, but for schema ``atriz``, Alembic's table and extensions' objects.

    :param schemas: the schemas to read, all where not given.
    """
    wanted = None if schemas is None else list(schemas)
    # Rolled back, so that the settings do not outlive it in a transaction of the caller's.
    with connection.transaction(force_rollback=True):
        connection.execute(_SETTINGS)
        rows = psycopg.RawCursor(connection).execute(_QUERY, [wanted]).fetchall()
    return {Identity(kind, name): definition for kind, name, definition in rows}


# What has a say in how the server writes names and constants; and a compiler that takes longer than the query.
_SETTINGS = """
    SET LOCAL search_path = public, pg_temp;
    SET LOCAL quote_all_identifiers = off;
    SET LOCAL TimeZone = 'UTC';
    SET LOCAL DateStyle = 'ISO, YMD';
    SET LOCAL IntervalStyle = 'postgres';
    SET LOCAL bytea_output = 'hex';
    SET LOCAL extra_float_digits = 1;
    SET LOCAL standard_conforming_strings = on;
    SET LOCAL jit = off;
"""

# Every list is sorted by bytes: two databases of one server may have different collations.
# Without a class is what has no comment of its own to look up.
_QUERY = """
WITH extended AS (
    SELECT classid AS class, objid AS id FROM pg_depend WHERE deptype = 'e'
), schema AS (
    SELECT * FROM pg_namespace
    WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'atriz')
      AND ($1::text[] IS NULL OR nspname = ANY ($1))
), relation AS (
    SELECT c.*, c.oid::regclass::text AS name, relispartition AS part, relkind IN ('v', 'm') AS view
    FROM pg_class c JOIN schema n ON n.oid = relnamespace
    WHERE relkind IN ('r', 'p', 'f', 'v', 'm', 'S') AND relname <> 'alembic_version'
      AND NOT EXISTS (SELECT FROM extended e WHERE e.class = 'pg_class'::regclass AND e.id = c.oid)
), object (class, id, sub, part, kind, name, definition, acl) AS (
    SELECT 'pg_namespace'::regclass, oid, 0, false, 'schema', quote_ident(nspname), format('CREATE SCHEMA %I', nspname),
           coalesce(nspacl, acldefault('n', nspowner))
    FROM schema

    UNION ALL  -- without its version and its comment, which are the server's
    SELECT NULL, NULL, 0, false, 'extension', quote_ident(extname),
           format('CREATE EXTENSION %I SCHEMA %I', extname, nspname), NULL
    FROM pg_extension x JOIN pg_namespace n ON n.oid = extnamespace

    UNION ALL
    SELECT 'pg_class'::regclass, oid, 0, part, 'table', name,
           concat_ws(' ', CASE relpersistence WHEN 'u' THEN 'UNLOGGED' END, CASE relkind WHEN 'f' THEN 'FOREIGN' END,
               'TABLE', 'PARTITION BY ' || pg_get_partkeydef(oid),
               (SELECT CASE WHEN part THEN 'PARTITION OF ' ELSE 'INHERITS ' END
                       || string_agg(inhparent::regclass::text, ', ' ORDER BY inhseqno)
                FROM pg_inherits WHERE inhrelid = r.oid),
               pg_get_expr(relpartbound, oid)),
           coalesce(relacl, acldefault('r', relowner))
    FROM relation r WHERE NOT view AND relkind <> 'S'

    UNION ALL
    SELECT 'pg_class'::regclass, oid, 0, false, 'view', name,
           concat(CASE relkind WHEN 'm' THEN 'MATERIALIZED ' END, E'VIEW AS\\n', pg_get_viewdef(oid)),
           coalesce(relacl, acldefault('r', relowner))
    FROM relation WHERE view

    UNION ALL
    SELECT 'pg_class'::regclass, oid, 0, false, 'sequence', name,
           concat_ws(' ', 'SEQUENCE AS', seqtypid::regtype, 'START', seqstart, 'INCREMENT', seqincrement, 'MINVALUE',
               seqmin, 'MAXVALUE', seqmax, 'CACHE', seqcache, CASE WHEN seqcycle THEN 'CYCLE' END,
               (SELECT format('OWNED BY %s.%I', attrelid::regclass, attname)
                FROM pg_depend JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
                WHERE classid = 'pg_class'::regclass AND objid = r.oid AND deptype IN ('a', 'i')
                  AND refclassid = 'pg_class'::regclass)),
           coalesce(relacl, acldefault('s', relowner))
    FROM relation r JOIN pg_sequence ON seqrelid = oid

    UNION ALL
    SELECT NULL, NULL, 0, part, 'setting', name, nullif(concat_ws(', ',
               (SELECT string_agg(option, ', ' ORDER BY option COLLATE "C") FROM unnest(reloptions) option),
               CASE WHEN relrowsecurity THEN 'ROW LEVEL SECURITY' END,
               CASE WHEN relforcerowsecurity THEN 'FORCE ROW LEVEL SECURITY' END,
               CASE relreplident WHEN 'f' THEN 'REPLICA IDENTITY FULL' WHEN 'i' THEN
                   (SELECT format('REPLICA IDENTITY USING INDEX %s', indexrelid::regclass)
                    FROM pg_index WHERE indrelid = r.oid AND indisreplident)
                   WHEN 'n' THEN CASE WHEN relkind IN ('r', 'p') THEN 'REPLICA IDENTITY NOTHING' END END), ''), NULL
    FROM relation r

    UNION ALL
    SELECT 'pg_class'::regclass, r.oid, attnum, part, CASE WHEN view THEN 'view' ELSE 'column' END,
           format('%s.%I', name, attname),
           concat_ws(' ', format_type(atttypid, atttypmod),
               (SELECT format('COLLATE %I', collname) FROM pg_collation c, pg_type t
                WHERE c.oid = attcollation AND t.oid = atttypid AND attcollation <> typcollation),
               CASE WHEN attnotnull THEN 'NOT NULL' END,
               CASE attidentity WHEN 'a' THEN 'GENERATED ALWAYS AS IDENTITY'
                                WHEN 'd' THEN 'GENERATED BY DEFAULT AS IDENTITY' END,
               CASE attgenerated WHEN '' THEN 'DEFAULT ' || pg_get_expr(adbin, adrelid)
                                 WHEN 's' THEN format('GENERATED ALWAYS AS (%s) STORED', pg_get_expr(adbin, adrelid))
                                 ELSE format('GENERATED ALWAYS AS (%s) VIRTUAL', pg_get_expr(adbin, adrelid)) END),
           attacl
    FROM relation r JOIN pg_attribute ON attrelid = r.oid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE relkind <> 'S' AND attnum > 0 AND NOT attisdropped

    UNION ALL  -- that a column is not null stands with the column: only from 18 on is it a constraint as well
    SELECT 'pg_constraint'::regclass, k.oid, 0, part OR conparentid <> 0, 'constraint', format('%s.%I', name, conname),
           pg_get_constraintdef(k.oid), NULL
    FROM relation r JOIN pg_constraint k ON conrelid = r.oid
    WHERE contype <> 't' AND (contype <> 'n' OR NOT convalidated)

    UNION ALL  -- without those of constraints, unless something is wrong with them
    SELECT 'pg_class'::regclass, indexrelid, 0, part, CASE WHEN view THEN 'view' ELSE 'index' END,
           indexrelid::regclass::text,
           pg_get_indexdef(indexrelid) || CASE WHEN indisvalid THEN '' ELSE ' INVALID' END, NULL
    FROM relation r JOIN pg_index ON indrelid = r.oid
    WHERE NOT indisvalid
       OR NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u', 'x'))

    UNION ALL
    SELECT 'pg_trigger'::regclass, t.oid, 0, part, 'trigger', format('%s.%I', name, tgname),
           pg_get_triggerdef(t.oid) || CASE tgenabled WHEN 'O' THEN '' WHEN 'D' THEN ' DISABLED'
                                       WHEN 'A' THEN ' ENABLED ALWAYS' ELSE ' ENABLED REPLICA' END, NULL
    FROM relation r JOIN pg_trigger t ON tgrelid = r.oid WHERE NOT tgisinternal

    UNION ALL
    SELECT 'pg_rewrite'::regclass, w.oid, 0, part, 'rule', format('%s.%I', name, rulename), pg_get_ruledef(w.oid), NULL
    FROM relation r JOIN pg_rewrite w ON ev_class = r.oid WHERE rulename <> '_RETURN'

    UNION ALL
    SELECT 'pg_policy'::regclass, p.oid, 0, part, 'policy', format('%s.%I', name, polname),
           concat_ws(' ', CASE WHEN polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END, 'FOR', polcmd, 'TO',
               (SELECT string_agg(CASE role WHEN 0 THEN 'PUBLIC' ELSE role::regrole::text END, ', '
                                  ORDER BY role::regrole::text COLLATE "C") FROM unnest(polroles) role),
               'USING ' || pg_get_expr(polqual, polrelid), 'WITH CHECK ' || pg_get_expr(polwithcheck, polrelid)), NULL
    FROM relation r JOIN pg_policy p ON polrelid = r.oid

    UNION ALL
    SELECT 'pg_statistic_ext'::regclass, s.oid, 0, part, 'statistics', format('%s.%I', name, stxname),
           pg_get_statisticsobjdef(s.oid), NULL
    FROM relation r JOIN pg_statistic_ext s ON stxrelid = r.oid

    UNION ALL
    SELECT 'pg_proc'::regclass, p.oid, 0, false, 'function', p.oid::regprocedure::text,
           CASE prokind WHEN 'a' THEN
               (SELECT concat_ws(' ', 'AGGREGATE', aggtransfn, aggtranstype::regtype, aggfinalfn, agginitval)
                FROM pg_aggregate WHERE aggfnoid = p.oid)
               ELSE pg_get_functiondef(p.oid) END,
           coalesce(proacl, acldefault('f', proowner))
    FROM pg_proc p JOIN schema n ON n.oid = pronamespace

    UNION ALL
    SELECT 'pg_type'::regclass, t.oid, 0, false,
           CASE typtype WHEN 'e' THEN 'enum' WHEN 'd' THEN 'domain' ELSE 'type' END, t.oid::regtype::text,
           CASE typtype
               WHEN 'e' THEN
                   (SELECT format('ENUM (%s)', string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder))
                    FROM pg_enum WHERE enumtypid = t.oid)
               WHEN 'd' THEN
                   concat_ws(' ', 'DOMAIN AS', format_type(typbasetype, typtypmod),
                       CASE WHEN typnotnull THEN 'NOT NULL' END, 'DEFAULT ' || pg_get_expr(typdefaultbin, 0),
                       (SELECT string_agg(format('CONSTRAINT %I %s', conname, pg_get_constraintdef(oid)), ' '
                                          ORDER BY conname COLLATE "C")
                        FROM pg_constraint WHERE contypid = t.oid AND contype <> 'n'))
               WHEN 'r' THEN (SELECT format('RANGE OF %s', rngsubtype::regtype) FROM pg_range WHERE rngtypid = t.oid)
               ELSE
                   (SELECT format('(%s)', string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', '
                                                     ORDER BY attnum))
                    FROM pg_attribute WHERE attrelid = typrelid AND attnum > 0 AND NOT attisdropped) END,
           coalesce(typacl, acldefault('T', typowner))
    FROM pg_type t JOIN schema n ON n.oid = typnamespace
    WHERE typtype IN ('e', 'd', 'r') OR EXISTS (SELECT FROM pg_class c WHERE c.oid = typrelid AND relkind = 'c')

    UNION ALL  -- default privileges, which are nothing but rights
    SELECT NULL, NULL, 0, false, 'default', concat_ws(' ', defaclobjtype, 'of', defaclrole::regrole, 'in ' || nspname),
           NULL, defaclacl
    FROM pg_default_acl LEFT JOIN schema n ON n.oid = defaclnamespace
    WHERE defaclnamespace = 0 OR n.oid IS NOT NULL
), own AS (
    SELECT * FROM object o WHERE NOT EXISTS (SELECT FROM extended e WHERE e.class = o.class AND e.id = o.id)
), described AS (
    SELECT part, kind, name, definition FROM own WHERE definition IS NOT NULL
    UNION ALL
    SELECT part, 'comment', concat_ws(' ', kind, name), description
    FROM own JOIN pg_description ON classoid = class AND objoid = id AND objsubid = sub
    UNION ALL
    SELECT part, 'grant', format('%s %s to %s', kind, name, role),
           string_agg(DISTINCT granted COLLATE "C", ', ' ORDER BY granted COLLATE "C")
    FROM own, LATERAL (
        SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS role,
               privilege_type || CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS granted
        FROM aclexplode(acl)
    ) AS right_
    GROUP BY part, kind, name, role
)
SELECT CASE WHEN part THEN 'partition' ELSE kind END, CASE WHEN part THEN concat_ws(' ', kind, name) ELSE name END,
       definition
FROM described
"""
