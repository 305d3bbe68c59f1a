// What a program in JavaScript does with SQS, through AWS's own SDK; prints what it saw as JSON.

import * as sqs from "@aws-sdk/client-sqs";

const client = new sqs.SQSClient({ maxAttempts: 1 });
const call = (name, input) => client.send(new sqs[`${name}Command`](input));
const seen = { errors: [] };

const { QueueUrl } = await call("CreateQueue", { QueueName: "js", Attributes: { VisibilityTimeout: "1" } });
const fifo = (await call("CreateQueue", { QueueName: "js.fifo", Attributes: { FifoQueue: "true", ContentBasedDeduplication: "true" } })).QueueUrl;
seen.queues = (await call("ListQueues", {})).QueueUrls.map((url) => url.split("/").pop());

// A poll that waits, a message with attributes, its lease that ends, its deletion. The SDK checks the MD5 of bodies itself.
const ask = { QueueUrl, MaxNumberOfMessages: 10, MessageAttributeNames: ["All"], MessageSystemAttributeNames: ["All"] };
const waiting = call("ReceiveMessage", { ...ask, WaitTimeSeconds: 20 });
const sent = await call("SendMessage", {
  QueueUrl,
  MessageBody: "Grüße",
  MessageAttributes: {
    text: { DataType: "String", StringValue: "grün" },
    bytes: { DataType: "Binary", BinaryValue: Uint8Array.from([0, 1, 2]) },
  },
});
const [first] = (await waiting).Messages;
seen.waited = first.MessageId === sent.MessageId && first.MD5OfMessageAttributes === sent.MD5OfMessageAttributes;
seen.attribute = [first.MessageAttributes.text.StringValue, Buffer.from(first.MessageAttributes.bytes.BinaryValue).toString("hex")];
seen.hidden = ((await call("ReceiveMessage", ask)).Messages ?? []).length;
const [again] = (await call("ReceiveMessage", { ...ask, WaitTimeSeconds: 5 })).Messages;
seen.receives = [first, again].map((message) => message.Attributes.ApproximateReceiveCount);
await call("DeleteMessage", { QueueUrl, ReceiptHandle: again.ReceiptHandle });

// Batches, with entries that fail alone.
const entries = ["a", "\u0000", "c"].map((MessageBody, index) => ({ Id: "abc"[index], MessageBody }));
const taken = await call("SendMessageBatch", { QueueUrl, Entries: entries });
seen.batch = [taken.Successful.map((entry) => entry.Id), taken.Failed.map((entry) => [entry.Id, entry.Code, entry.SenderFault])];
const messages = (await call("ReceiveMessage", { ...ask, VisibilityTimeout: 30 })).Messages;
seen.bodies = messages.map((message) => message.Body);
const handles = messages.map((message) => message.ReceiptHandle);
const changed = await call("ChangeMessageVisibilityBatch", {
  QueueUrl,
  Entries: [handles[0], "garbage"].map((ReceiptHandle, index) => ({ Id: `${index}`, ReceiptHandle, VisibilityTimeout: 60 })),
});
seen.changed = [changed.Successful.map((entry) => entry.Id), changed.Failed.map((entry) => [entry.Id, entry.Code])];
const deleted = await call("DeleteMessageBatch", {
  QueueUrl,
  Entries: handles.map((ReceiptHandle, index) => ({ Id: `${index}`, ReceiptHandle })),
});
seen.deleted = deleted.Successful.length;
const counts = await call("GetQueueAttributes", { QueueUrl, AttributeNames: ["ApproximateNumberOfMessagesNotVisible"] });
seen.left = counts.Attributes.ApproximateNumberOfMessagesNotVisible;

// An ordered queue.
const numbers = [];
for (const MessageBody of ["1", "2", "3", "1"]) {
  numbers.push((await call("SendMessage", { QueueUrl: fifo, MessageBody, MessageGroupId: "g" })).SequenceNumber);
}
seen.repeated = numbers[0] === numbers[3] && numbers[0] < numbers[1] && numbers[1] < numbers[2];
seen.fifo = (await call("ReceiveMessage", { ...ask, QueueUrl: fifo })).Messages.map((message) => message.Body);

// Errors by name.
for (const [name, input] of [
  ["GetQueueUrl", { QueueName: "none" }],
  ["DeleteMessage", { QueueUrl, ReceiptHandle: "garbage" }],
  ["SendMessage", { QueueUrl, MessageBody: "\uffff" }],
  ["DeleteMessageBatch", { QueueUrl, Entries: [] }],
  ["CreateQueue", { QueueName: "js", Attributes: { VisibilityTimeout: "2" } }],
]) {
  try {
    await call(name, input);
    seen.errors.push([name, "no error"]);
  } catch (error) {
    seen.errors.push([error.name, error.Code ?? error.Error?.Code, error.$metadata.httpStatusCode]);
  }
}

process.stdout.write(JSON.stringify(seen));
