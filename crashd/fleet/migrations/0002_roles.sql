-- Two roles that hold the rights; grant them to the users who log in.
--     crashd_index   the indexer, and operators who delete crashes or ask for cores
--     crashd_read    crashctl --fleet, Grafana
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'crashd_index') THEN
        CREATE ROLE crashd_index NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'crashd_read') THEN
        CREATE ROLE crashd_read NOLOGIN;
    END IF;
END $$;

GRANT USAGE ON SCHEMA crashd TO crashd_index, crashd_read;
GRANT SELECT ON ALL TABLES IN SCHEMA crashd TO crashd_index, crashd_read;
GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA crashd TO crashd_index;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA crashd TO crashd_index;

-- Only the owner of a table may add or drop its partitions: the indexer does both through these, and nothing else.
CREATE FUNCTION add_day(wanted date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = crashd, pg_temp AS $$
BEGIN
    IF wanted IS NULL OR wanted < date '2000-01-01' OR wanted > now()::date + 3 THEN
        RAISE EXCEPTION 'day % is out of range', wanted;
    END IF;
    IF to_regclass(format('crashd.tally_%s', to_char(wanted, 'YYYYMMDD'))) IS NOT NULL THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('crashd day'), 0);
    EXECUTE format('CREATE TABLE IF NOT EXISTS crash_%s PARTITION OF crash FOR VALUES FROM (%L) TO (%L)',
        to_char(wanted, 'YYYYMMDD'), wanted, wanted + 1);
    EXECUTE format('ALTER TABLE crash_%s SET (autovacuum_vacuum_insert_scale_factor = 0.05,'
        ' autovacuum_analyze_scale_factor = 0.05)', to_char(wanted, 'YYYYMMDD'));
    EXECUTE format('CREATE TABLE IF NOT EXISTS tally_%s PARTITION OF tally FOR VALUES FROM (%L) TO (%L)',
        to_char(wanted, 'YYYYMMDD'), wanted, wanted + 1);
    RETURN true;
END $$;

CREATE FUNCTION drop_days(before date) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = crashd, pg_temp AS $$
DECLARE
    part record;
    dropped integer := 0;
BEGIN
    IF before IS NULL OR before > now()::date THEN
        RAISE EXCEPTION 'refusing to drop days up to %', before;
    END IF;
    FOR part IN
        SELECT c.relname FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid
        JOIN pg_class p ON p.oid = i.inhparent
        WHERE p.relnamespace = 'crashd'::regnamespace AND p.relname IN ('crash', 'tally')
            AND c.relname ~ '^(crash|tally)_\d{8}$' AND to_date(right(c.relname, 8), 'YYYYMMDD') < before
        ORDER BY right(c.relname, 8), c.relname
    LOOP
        EXECUTE format('DROP TABLE %I', part.relname);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END $$;

REVOKE EXECUTE ON FUNCTION add_day(date), drop_days(date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION add_day(date), drop_days(date) TO crashd_index;
