'use strict';
// What the worker and the client share: the project's protos, flags, credentials and the options of a connection.

const fs = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const protos = path.join(__dirname, '..', '..', 'protos');
const files = ['job', 'work_queue', 'report_queue'].map((name) => `antfarm/v1/${name}.proto`);
// 64-bit numbers stay strings: a token must come back exactly as it was given.
const loaded = protoLoader.loadSync(files, { includeDirs: [protos], keepCase: true, longs: String, enums: String, oneofs: true });
const v1 = grpc.loadPackageDefinition(loaded).antfarm.v1;

const options = {
  'grpc.max_receive_message_length': (4 << 20) + 65536,
  'grpc.max_send_message_length': (4 << 20) + 65536,
  'grpc.keepalive_time_ms': 20000,
  'grpc.keepalive_timeout_ms': 10000,
  'grpc.keepalive_permit_without_calls': 1,
  'grpc.enable_http_proxy': 0,
};

/** One clear line, and the exit code of a wrong call. */
function fail(line, code = 2) {
  process.stderr.write(`${path.basename(process.argv[1])}: ${line}\n`);
  process.exit(code);
}

/** Flags of a program: its own and those of every connection. */
function flags(own) {
  const common = { connect: { type: 'string' }, 'tls-cert': { type: 'string' }, 'tls-key': { type: 'string' }, 'tls-ca': { type: 'string' } };
  try {
    const { values, positionals } = parseArgs({ options: { ...common, ...own }, allowPositionals: true });
    if (!/^[^\s:]+:\d+$|^\[[0-9a-f:]+\]:\d+$/i.test(values.connect ?? '')) fail('--connect HOST:PORT must be given, e.g. 127.0.0.1:50051');
    return { ...values, positionals };
  } catch (error) {
    return fail(error.message.split('\n')[0]);
  }
}

/** Credentials from --tls-cert, --tls-key and --tls-ca; without them none. Mutual TLS: both ends show certificates of one CA. */
function credentials(values) {
  const names = ['tls-ca', 'tls-key', 'tls-cert'];
  if (names.every((name) => !values[name])) return grpc.credentials.createInsecure();
  const missing = names.find((name) => !values[name]);
  if (missing) fail(`--${missing} is missing: TLS needs --tls-cert, --tls-key and --tls-ca together`);
  const [ca, key, cert] = names.map((name) => {
    try {
      return fs.readFileSync(values[name]);
    } catch (error) {
      return fail(`--${name} ${values[name]}: ${error.message.split('\n')[0]}`);
    }
  });
  return grpc.credentials.createSsl(ca, key, cert);
}

/** The UPPER_SNAKE reason of a failed call. It stands as plain text in the google.rpc.Status that the trailer carries. */
function reasonOf(error, reasons) {
  const details = String(error.metadata?.get('grpc-status-details-bin')?.[0] ?? '');
  return reasons.find((reason) => details.includes(reason)) ?? grpc.status[error.code];
}

module.exports = { grpc, v1, options, fail, flags, credentials, reasonOf };
