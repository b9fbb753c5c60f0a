"""What has to hold when every trigger has been through. Each check is a query
for what contradicts it.

In order means: the requests of a shop are applied in the order of their offsets
in the one partition where they are. A call that had ended before another one of
the same shop was sent has the lower offset, so what the callers knew to be an
order is one. Calls that overlapped are put in order by the log alone, and each
reply says what it found and what number it was.
"""

NOT_FOUND, FAILED_PRECONDITION = 5, 9
INITIAL_M, LAST_M, TRIGGERS = 4000, 1000, 3

# Calls and changes that went well, by shop, in the order of the log.
IN_LOG_ORDER = f"""
CREATE TABLE in_log_order AS
SELECT shop, trigger, partition, log_offset, previous_m, radius_m, nth, applied,
       row_number() OVER log AS place,
       row_number() OVER (PARTITION BY shop ORDER BY applied) AS applied_place,
       lag(radius_m, 1, {INITIAL_M}) OVER log AS before_m,
       row_number() OVER (PARTITION BY shop ORDER BY log_offset DESC) = 1 AS is_last
FROM change WHERE status = 0
WINDOW log AS (PARTITION BY shop ORDER BY log_offset)
"""

CHECKS = {
    "every shop got one call from every trigger, and each call an outcome": """
        SELECT shop, trigger FROM wanted LEFT JOIN call USING (shop, trigger)
        GROUP BY shop, trigger HAVING count(call.code) <> 1
        UNION ALL (SELECT shop, trigger FROM call EXCEPT SELECT shop, trigger FROM wanted)""",
    "no call timed out or failed but for its shop": f"""
        SELECT shop, trigger, code, outcome FROM call
        WHERE code NOT IN (0, {NOT_FOUND}, {FAILED_PRECONDITION}) OR outcome <> 'sent' OR log_offset IS NULL""",
    "the shops that failed for the callers are those that are closed or not there": f"""
        (SELECT shop, trigger, code FROM call WHERE code <> 0
         EXCEPT SELECT shop, trigger, CASE WHEN id IS NULL THEN {NOT_FOUND} ELSE {FAILED_PRECONDITION} END
                FROM wanted LEFT JOIN shop ON id = shop WHERE id IS NULL OR closed)
        UNION ALL
        (SELECT shop, trigger, CASE WHEN id IS NULL THEN {NOT_FOUND} ELSE {FAILED_PRECONDITION} END
         FROM wanted LEFT JOIN shop ON id = shop WHERE id IS NULL OR closed
         EXCEPT SELECT shop, trigger, code FROM call WHERE code <> 0)""",
    "each record of the topic is a call's, at the place that its trailer says": """
        SELECT partition, log_offset, record.shop, call.shop FROM record FULL JOIN call USING (partition, log_offset)
        WHERE record.shop IS DISTINCT FROM call.shop OR record.trigger IS DISTINCT FROM call.trigger""",
    "each record was applied once": """
        SELECT partition, log_offset FROM record FULL JOIN change USING (partition, log_offset)
        WHERE record.shop IS DISTINCT FROM change.shop OR record.trigger IS DISTINCT FROM change.trigger""",
    "a record's key is its shop, and a shop's records are in one partition": """
        SELECT shop FROM record GROUP BY shop HAVING count(DISTINCT partition) > 1 OR bool_or(key <> shop::text)""",
    "a shop's changes were applied in the order of the log": """
        SELECT shop, trigger, place, applied_place, nth FROM in_log_order
        WHERE place <> applied_place OR place <> nth""",
    "each change found what the one before it had left": """
        SELECT shop, trigger, previous_m, before_m FROM in_log_order WHERE previous_m <> before_m""",
    "the final radius is that of the last in the log": f"""
        SELECT id, shop.radius_m, last.radius_m FROM shop
        LEFT JOIN in_log_order AS last ON last.shop = shop.id AND is_last
        WHERE shop.radius_m <> coalesce(last.radius_m, {INITIAL_M})
           OR changes <> CASE WHEN closed THEN 0 ELSE {TRIGGERS} END""",
    "each caller was told what the database did": """
        SELECT call.shop, call.trigger FROM call JOIN change USING (partition, log_offset)
        WHERE call.code <> status OR call.previous_m IS DISTINCT FROM change.previous_m
           OR call.radius_m IS DISTINCT FROM change.radius_m OR call.nth IS DISTINCT FROM change.nth""",
    "a call that had ended before another was sent comes first": """
        SELECT earlier.shop, earlier.trigger, later.trigger FROM call AS earlier JOIN call AS later USING (shop)
        WHERE earlier.ended_us < later.sent_us AND earlier.log_offset > later.log_offset""",
    "shops whose callers waited end at the last trigger's radius": f"""
        SELECT id, radius_m FROM shop JOIN (SELECT DISTINCT shop FROM call WHERE chained) AS waited ON id = shop
        WHERE NOT closed AND radius_m <> {LAST_M}""",
    "the marks stand at the end of the topic": """
        SELECT partition FROM progress LEFT JOIN (SELECT partition, max(log_offset) + 1 AS ends FROM record GROUP BY 1) AS log USING (partition)
        WHERE next_offset <> coalesce(ends, 0)""",
}


def load(postgres, shops, calls, records):
    postgres.load("call", "shop, trigger, chained, gateway, sent_us, ended_us, code, outcome, partition, log_offset, previous_m, radius_m, nth", calls)  # fmt: skip
    postgres.load("record", "partition, log_offset, key, shop, trigger", records)
    postgres.run(
        f"CREATE TABLE wanted AS SELECT shop, trigger FROM generate_series(1, {shops}) AS shop, generate_series(1, {TRIGGERS}) AS trigger",
        IN_LOG_ORDER,
        "CREATE INDEX ON call (shop)",
        "ANALYZE",
    )


def all_hold(postgres, show):
    """Whether every check found nothing; shows each."""
    holds = True
    for words, query in CHECKS.items():
        found = postgres.run(f"SELECT * FROM ({query}) AS contradiction")
        show(words, len(found), found[:3])
        holds = holds and not found
    return holds
