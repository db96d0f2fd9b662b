'use strict';
// A client in Node: submits one job, one task per argument, and prints the results in the order of the arguments.
//   node client.js --connect 127.0.0.1:50051 TYPE ARGUMENT...      (an argument is JSON; what is not JSON is taken as text)

const crypto = require('node:crypto');
const { setTimeout: sleep } = require('node:timers/promises');
const { promisify } = require('node:util');
const { v1, options, fail, flags, credentials, reasonOf } = require('./farm');

const args = flags({ 'job-id': { type: 'string', default: `node-${crypto.randomUUID()}` }, 'give-up-s': { type: 'string', default: '30' } });
const [type, ...words] = args.positionals;
if (!type || !words.length) fail('give a task type and at least one argument, e.g. node.wordcount "to be or not to be"');

const farm = new v1.JobService(args.connect, credentials(args), options);

function valueOf(word) {
  try {
    return JSON.parse(word);
  } catch {
    return word;
  }
}

/** Calls until it is answered. Safe: the client names the job, so a repeated CreateJob makes no second one. */
async function patiently(call) {
  const end = Date.now() + Number(args['give-up-s']) * 1000;
  for (;;) {
    try {
      return await call();
    } catch (error) {
      const reason = reasonOf(error, ['UNAVAILABLE', 'OVERLOADED', 'DISK_FULL', 'DRAINING']);
      const weather = ['UNAVAILABLE', 'OVERLOADED', 'DISK_FULL', 'DRAINING', 'DEADLINE_EXCEEDED'].includes(reason);
      if (!weather || Date.now() > end) fail(`${args.connect}: ${error.details}`, weather ? 3 : 2);
      await sleep(200 + Math.random() * 800);
    }
  }
}

let cursor = '0'; // where to go on after a broken call: no outcome is missed, and one that comes twice has the same index
const outcomes = new Map();

/** Reads recorded outcomes until the job has ended. */
function results(job_id) {
  return new Promise((resolve, reject) => {
    const stream = farm.StreamResults({ job_id, cursor, follow: true });
    stream.on('data', (message) => {
      for (const result of message.results ?? []) outcomes.set(Number(result.index ?? 0), result);
      cursor = message.cursor ?? cursor;
    });
    stream.on('error', reject).on('end', resolve);
  });
}

async function main() {
  const create = promisify(farm.CreateJob.bind(farm));
  const payloads = words.map((word) => Buffer.from(JSON.stringify([valueOf(word)])));
  const request = { job_id: args['job-id'], spec: { name: 'from Node', template: { type } }, payloads, close: true };
  const { job } = await patiently(() => create(request));
  await patiently(() => results(job.job_id));
  if (outcomes.size < words.length) { // a restored backup may have put some below the cursor: read from the beginning
    cursor = '0';
    await patiently(() => results(job.job_id));
  }
  if (outcomes.size < words.length) fail(`${args.connect}: ${words.length - outcomes.size} results of job ${job.job_id} are missing`, 1);
  for (const [index, word] of words.entries()) {
    const { state, result, failure, worker_id } = outcomes.get(index);
    if (state === 'TASK_STATE_SUCCEEDED') console.log(result.toString());
    else console.error(`${word}: ${state.replace('TASK_STATE_', '')} ${worker_id ?? ''}: ${failure?.kind}: ${failure?.message}`);
  }
  farm.close();
  process.exitCode = [...outcomes.values()].every(({ state }) => state === 'TASK_STATE_SUCCEEDED') ? 0 : 1;
}

void main();
