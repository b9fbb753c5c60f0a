package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/codes"
)

// shop is a row while a transaction works on it.
type shop struct {
	id              int64
	radius, changes int32
	closed, changed bool
}

// apply carries out the requests of one partition, in their order, in one
// transaction; `repeated` of them had been before.
func (w *worker) apply(ctx context.Context, partition int32, changes []*change) (repeated int, err error) {
	err = pgx.BeginFunc(ctx, w.database, func(tx pgx.Tx) error {
		var next int64
		// Whoever held this partition before has committed or is gone once this returns.
		if err := tx.QueryRow(ctx, "SELECT next_offset FROM progress WHERE partition = $1 FOR UPDATE", partition).Scan(&next); err != nil {
			return fmt.Errorf("progress: %w", err)
		}
		for repeated < len(changes) && changes[repeated].record.Offset < next {
			repeated++
		}
		if err := recall(ctx, tx, partition, changes[:repeated]); err != nil {
			return fmt.Errorf("what was applied: %w", err)
		}
		fresh := changes[repeated:]
		if len(fresh) == 0 {
			return nil
		}
		shops, err := load(ctx, tx, fresh)
		if err != nil {
			return fmt.Errorf("shops: %w", err)
		}
		for _, c := range fresh {
			c.decide(shops[int64(c.request.GetShopId())])
		}
		return store(ctx, tx, partition, shops, fresh)
	})
	return repeated, err
}

// recall looks up what was done with requests that come again.
func recall(ctx context.Context, tx pgx.Tx, partition int32, changes []*change) error {
	if len(changes) == 0 {
		return nil
	}
	byOffset := make(map[int64]*change, len(changes))
	for _, c := range changes {
		byOffset[c.record.Offset] = c
	}
	rows, err := tx.Query(ctx, `SELECT log_offset, status, coalesce(previous_m, 0), coalesce(radius_m, 0), coalesce(nth, 0)
		FROM change WHERE partition = $1 AND log_offset BETWEEN $2 AND $3`,
		partition, changes[0].record.Offset, changes[len(changes)-1].record.Offset)
	if err != nil {
		return err
	}
	defer rows.Close()
	found := 0
	for rows.Next() {
		var offset int64
		var status, previous, radius, nth int32
		if err := rows.Scan(&offset, &status, &previous, &radius, &nth); err != nil {
			return err
		}
		if c := byOffset[offset]; c != nil {
			c.status, c.previous, c.radius, c.nth = codes.Code(status), previous, radius, nth
			found++
		}
	}
	if rows.Err() == nil && found != len(changes) {
		return fmt.Errorf("%d of %d requests before the mark have no row", len(changes)-found, len(changes))
	}
	return rows.Err()
}

func load(ctx context.Context, tx pgx.Tx, changes []*change) (map[int64]*shop, error) {
	ids := make([]int64, 0, len(changes))
	for _, c := range changes {
		ids = append(ids, int64(c.request.GetShopId()))
	}
	rows, err := tx.Query(ctx, "SELECT id, radius_m, changes, closed FROM shop WHERE id = ANY($1)", ids)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	shops := make(map[int64]*shop, len(ids))
	for rows.Next() {
		s := &shop{}
		if err := rows.Scan(&s.id, &s.radius, &s.changes, &s.closed); err != nil {
			return nil, err
		}
		shops[s.id] = s
	}
	return shops, rows.Err()
}

func store(ctx context.Context, tx pgx.Tx, partition int32, shops map[int64]*shop, changes []*change) error {
	var ids []int64
	var radii, counts []int32
	for _, s := range shops {
		if s.changed {
			ids, radii, counts = append(ids, s.id), append(radii, s.radius), append(counts, s.changes)
		}
	}
	if _, err := tx.Exec(ctx, `UPDATE shop SET radius_m = new.radius_m, changes = new.changes
		FROM unnest($1::bigint[], $2::integer[], $3::integer[]) AS new (id, radius_m, changes)
		WHERE shop.id = new.id`, ids, radii, counts); err != nil {
		return fmt.Errorf("shops: %w", err)
	}
	columns := []string{"partition", "log_offset", "shop", "trigger", "status", "previous_m", "radius_m", "nth"}
	rows := pgx.CopyFromSlice(len(changes), func(i int) ([]any, error) {
		c := changes[i]
		row := []any{partition, c.record.Offset, int64(c.request.GetShopId()), int32(c.request.GetTrigger()), int32(c.status), nil, nil, nil}
		if c.status == codes.OK {
			row[5], row[6], row[7] = c.previous, c.radius, c.nth
		}
		return row, nil
	})
	if _, err := tx.CopyFrom(ctx, pgx.Identifier{"change"}, columns, rows); err != nil {
		return fmt.Errorf("changes: %w", err)
	}
	next := changes[len(changes)-1].record.Offset + 1
	if _, err := tx.Exec(ctx, "UPDATE progress SET next_offset = $2 WHERE partition = $1", partition, next); err != nil {
		return fmt.Errorf("progress: %w", err)
	}
	return nil
}
