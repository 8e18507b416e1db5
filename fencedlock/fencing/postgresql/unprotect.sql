DO $fencedlock$
DECLARE
    target record;
BEGIN
    FOR target IN
        WITH RECURSIVE tree AS (
            SELECT CAST(CAST('{table}' AS regclass) AS oid) AS oid
            UNION SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = tree.oid
        )
        SELECT CAST(t.tgrelid AS regclass) AS name, t.tgname FROM tree JOIN pg_trigger AS t ON t.tgrelid = tree.oid
        WHERE t.tgname IN ('fencedlock_check', 'fencedlock_check_rows') AND t.tgparentid = 0
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', target.tgname, target.name);
    END LOOP;
    BEGIN
        DROP FUNCTION IF EXISTS {function}();
    EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
        NULL; -- the function still protects other tables, or is owned by another role
    END;
END
$fencedlock$
