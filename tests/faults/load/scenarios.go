package main

import (
	"fmt"
	"strconv"
)

const (
	accounts     = 200 // of examples/bank
	paymentKinds = 5   // of examples/payments
	amountMax    = 1_000
)

// newScenarioRequest is a call of one of the scenarios in examples/.
func newScenarioRequest(kind, run string, number int) request {
	var m []byte
	name := fmt.Sprintf("%s-%d", run, number)
	amount := uint64(1 + number%amountMax)
	m = text(m, 1, name)
	switch kind {
	case "checkout":
		m = text(integer(m, 2, amount), 3, "EUR")
		return request{path: "/shop.payments.v1.PaymentService/Pay", key: name, message: m, once: "pay-" + name, shown: 2,
			isOwn: func(reply []byte) bool {
				texts, integers := fields(reply)
				return texts[1] == name && texts[2] != "" && integers[3] == amount
			}}
	case "transfer":
		from := number * 7919 % accounts
		to := (from + 1 + number%(accounts-1)) % accounts
		m = text(text(m, 2, "account-"+strconv.Itoa(from)), 3, "account-"+strconv.Itoa(to))
		return request{path: "/bank.v1.BankService/Transfer", key: name, message: integer(m, 4, amount), once: name,
			isOwn: func(reply []byte) bool {
				texts, integers := fields(reply)
				return texts[1] == name && integers[2] == amount
			}}
	default:
		return request{path: "/bank.v1.BankService/Notify", key: name, message: text(m, 2, "hello"),
			isOwn: func(reply []byte) bool {
				texts, _ := fields(reply)
				return texts[1] == "bank_notification"
			}}
	}
}

// newRefund gives a payment back that was taken.
func newRefund(order, payment string) request {
	m := text(text(nil, 1, order), 2, payment)
	kind := uint64(1 + len(payment)%paymentKinds)
	return request{path: "/shop.payments.v1.PaymentService/Refund", key: order, message: integer(m, 3, kind), once: "refund-" + order,
		isOwn: func(reply []byte) bool {
			texts, _ := fields(reply)
			return texts[1] == order && texts[2] == payment
		}}
}
