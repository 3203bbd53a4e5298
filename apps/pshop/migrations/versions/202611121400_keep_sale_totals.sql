-- migrate:up

-- By differences and not by a new sum: two registers that add a line to one sale at the same time do not see each
-- other's line, but the second waits for the first at the row of the sale and then adds to what it finds there.
CREATE FUNCTION keep_sale_total() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP IN ('UPDATE', 'DELETE') THEN
        UPDATE sales SET total = total - OLD.line_total WHERE id = OLD.sale_id;
    END IF;
    IF TG_OP IN ('UPDATE', 'INSERT') THEN
        UPDATE sales SET total = total + NEW.line_total WHERE id = NEW.sale_id;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION keep_sale_total() IS 'Keeps sales.total, as an AFTER trigger on sale_items.';

CREATE TRIGGER keep_sale_total AFTER INSERT OR UPDATE OR DELETE ON sale_items
    FOR EACH ROW EXECUTE FUNCTION keep_sale_total();

-- After the trigger, whose lock keeps new lines out until the totals are right.
UPDATE sales
SET total = lines.total
FROM (SELECT sale_id, sum(line_total) AS total FROM sale_items GROUP BY sale_id) AS lines
WHERE sales.id = lines.sale_id AND sales.total <> lines.total;

-- migrate:down

-- The totals stay as they are: they are right, and nothing else knows them.
DROP TRIGGER keep_sale_total ON sale_items;
DROP FUNCTION keep_sale_total();
