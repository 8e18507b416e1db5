DO $fencedlock$
DECLARE
    target record;
BEGIN
    BEGIN
        CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $check$
        BEGIN
            IF current_setting('fencedlock.passed', true) IS DISTINCT FROM CAST(txid_current() AS text) THEN
                RAISE EXCEPTION 'table % is protected by fencedlock, and this transaction has passed no check', CAST(TG_RELID AS regclass)
                    USING ERRCODE = 'insufficient_privilege',
                          HINT = 'Check the fencing token first in the transaction, by fence.check(connection, token). '
                                 'For maintenance by hand see the documentation of protect.';
            END IF;
            RETURN NULL;
        END
        $check$;
    EXCEPTION WHEN insufficient_privilege THEN
        IF to_regprocedure('{function}()') IS NULL THEN
            RAISE;
        END IF; -- otherwise another role has made the function, and it can be used
    END;
    FOR target IN
        WITH RECURSIVE tree AS (
            SELECT CAST(CAST('{table}' AS regclass) AS oid) AS oid
            UNION SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = tree.oid
        )
        SELECT CAST(c.oid AS regclass) AS name, c.relkind, c.oid = CAST('{table}' AS regclass) AS is_root
        FROM tree JOIN pg_class AS c ON c.oid = tree.oid ORDER BY is_root
    LOOP
        IF target.relkind NOT IN ('r', 'p') THEN
            IF target.is_root THEN
                RAISE EXCEPTION '% is no table, and only tables can be protected', target.name USING ERRCODE = 'wrong_object_type';
            END IF;
            CONTINUE;
        END IF;
        IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = target.name AND tgname = 'fencedlock_check') THEN
            EXECUTE format('CREATE TRIGGER fencedlock_check BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s '
                'FOR EACH STATEMENT EXECUTE FUNCTION {function}()', target.name);
            EXECUTE format('ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER fencedlock_check', target.name);
        END IF;
        -- PostgreSQL copies only row triggers to partitions that are added later. Therefore the
        -- topmost table gets a row trigger too.
        IF target.is_root THEN
            IF target.relkind = 'p'
                AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = target.name AND tgname = 'fencedlock_check_rows') THEN
                EXECUTE format('CREATE TRIGGER fencedlock_check_rows AFTER INSERT OR UPDATE OR DELETE ON %s '
                    'FOR EACH ROW EXECUTE FUNCTION {function}()', target.name);
                EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER fencedlock_check_rows', target.name);
            END IF;
        ELSIF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = target.name AND tgname = 'fencedlock_check_rows' AND tgparentid = 0) THEN
            -- This partition was protected by itself before. It now gets a copy of the trigger of
            -- the topmost table instead.
            EXECUTE format('DROP TRIGGER fencedlock_check_rows ON %s', target.name);
        END IF;
    END LOOP;
END
$fencedlock$
