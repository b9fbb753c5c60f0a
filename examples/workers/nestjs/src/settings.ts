export const settings = {
  brokers: (process.env.KAFKA_BOOTSTRAP ?? '127.0.0.1:9092').split(','),
  groupId: process.env.KAFKA_GROUP ?? 'payments',
  topic: process.env.KAFKA_TOPIC ?? 'payment_request',
  // Whether messages are JSON; else they are protobuf.
  json: process.env.PAYLOAD === 'json',
  // "false" leaves errors to Nest.
  answerErrors: process.env.ANSWER_ERRORS !== 'false'
}
