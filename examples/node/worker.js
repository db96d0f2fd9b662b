'use strict';
// A worker in Node, by docs/protocol.md: hello, welcome, credit, heartbeats with the held set, tasks, reports, verdicts, goodbye.
//   node worker.js --connect 127.0.0.1:50051 [--slots 2] [--id NAME] [--tls-cert F --tls-key F --tls-ca F]

const crypto = require('node:crypto');
const os = require('node:os');
const { setTimeout: sleep } = require('node:timers/promises');
const { Attempts, seconds } = require('./attempts');
const { v1, options, fail, flags, credentials, reasonOf } = require('./farm');
const { tasks } = require('./tasks');

const HOPELESS = ['PROTOCOL_UNSUPPORTED', 'WORKER_ID_IN_USE', 'CYCLE', 'INVALID_FIELD'];
const DRAIN_S = 30;
const CANCEL_GRACE_S = 10;

const args = flags({ slots: { type: 'string', default: '2' }, id: { type: 'string', default: `node-${os.hostname()}-${process.pid}` } });
const slots = Number(args.slots);
if (!Number.isInteger(slots) || slots < 1) fail(`--slots ${args.slots}: give a whole number from 1`);

const attempts = new Attempts(slots, (attempt) => report([attempt]));
let incarnation = crypto.randomBytes(16);
let window = slots * 2; // one task waits behind each that runs
let session = null; // the attached pair of streams
let announced = false;
let waiting = []; // outcomes of this turn of the loop: they travel in one frame

function report(ended) {
  if (!session?.push) return; // everything without a verdict is sent after the next welcome
  if (!waiting.length) setImmediate(flush);
  waiting.push(...ended);
}

function flush() {
  const outcomes = waiting.splice(0).map((attempt) => {
    const { job_id, epoch, index, attempt: number, outcome } = attempt;
    const report_no = String(session ? ++session.lastReport : 0);
    session?.sent.set(report_no, attempt);
    return { job_id, epoch, outcomes: [{ ...outcome, report_no, index, attempt: number }] };
  });
  while (outcomes.length) session?.push?.write({ reports: { outcomes: outcomes.splice(0, 16) } }); // well below 4 MiB
}

function judge(mine, verdicts) {
  for (const { code, report_nos, retry_after } of verdicts ?? []) {
    const judged = report_nos.map((number) => mine.sent.get(number)).filter(Boolean);
    report_nos.forEach((number) => mine.sent.delete(number));
    if (!attempts.judged(code, judged) && code === 'VERDICT_CODE_RETRY') setTimeout(report, seconds(retry_after) * 1000, judged);
  }
}

const frames = {
  welcome(mine, { epoch, session_id, heartbeat, lease, revoked }, reports) {
    if (BigInt(epoch) < attempts.maxEpoch) return mine.end({ details: `its epoch ${epoch} is below ${attempts.maxEpoch}, which was seen before` });
    attempts.maxEpoch = BigInt(epoch);
    mine.leaseS = seconds(lease);
    attempts.each(revoked, (attempt) => attempts.forget(attempt));
    mine.push = reports.PushReports();
    mine.push.on('error', mine.end).on('end', mine.end).on('data', ({ verdicts }) => judge(mine, verdicts));
    mine.push.write({ hello: { session_id } });
    report(attempts.reports());
    mine.timer = setInterval(beat, seconds(heartbeat) * 1000, mine);
    if (!announced) console.log(`worker ${args.id} ready on ${args.connect} (${slots} slots)`);
    announced = true;
  },
  tasks(mine, { groups }) {
    mine.framesReceived += 1;
    attempts.take(groups);
  },
  revoke: (mine, { attempts: groups }) => attempts.each(groups, (attempt) => attempts.stop(attempt, 'ENDING_REVOKED')),
  heartbeat_ack: (mine, { revoked }) => attempts.each(revoked, (attempt) => attempts.forget(attempt)),
  drain: (mine, { limit }) => void drain(seconds(limit), 'asked to drain'),
};

function beat(mine) { // the whole held set: whatever message was lost, this repairs it
  mine.pull.write({ heartbeat: { number: ++mine.beats, tasks_frames_received: mine.framesReceived, held: attempts.groups() } });
}

/** Attaches, and resolves with the error (or nothing) that ended the session. */
function attach(queue, reports) {
  return new Promise((resolve) => {
    const mine = { pull: queue.PullTasks(), push: null, sent: new Map(), lastReport: 0, framesReceived: 0, beats: 0, leaseS: 12 };
    mine.end = (error) => { // a broken stream only detaches: what is held is held, and is told again
      if (session === mine) session = null;
      clearInterval(mine.timer);
      mine.pull.cancel();
      mine.push?.cancel();
      resolve({ error, leaseS: mine.leaseS });
    };
    session = mine;
    mine.pull.on('error', mine.end).on('end', mine.end);
    mine.pull.on('data', (message) => frames[message.frame]?.(mine, message[message.frame], reports)); // unknown frames are ignored
    mine.pull.write({
      hello: {
        protocol_major: 1, worker_id: args.id, incarnation, slots, window, task_types: Object.keys(tasks), max_epoch_seen: String(attempts.maxEpoch),
        held: attempts.groups(), host: os.hostname(), software: 'antfarm-node-example 0.1.0',
      },
    });
  });
}

let drainEnd = 0; // when what runs is stopped

/** No more work; hands back what waits, finishes what runs, keeps its reports until their verdicts, then leaves with a word. Asked again, the limit is the new one. */
async function drain(limitS, cause) {
  drainEnd = Date.now() + limitS * 1000;
  if (window === 0) return;
  window = 0;
  session?.pull.write({ credit: { window } });
  for (const attempt of attempts.held.values()) if (!attempt.started) attempts.stop(attempt, 'ENDING_RELEASED');
  await emptied();
  for (const attempt of attempts.held.values()) attempts.stop(attempt, 'ENDING_RELEASED');
  drainEnd = Date.now() + CANCEL_GRACE_S * 1000;
  await emptied();
  if (!session) process.exit(0);
  session.pull.on('end', () => process.exit(0)); // the orchestrator ends the stream when it has read the word
  session.pull.write({ goodbye: { cause } });
  session.pull.end();
  await sleep(2000);
  process.exit(0);
}

async function emptied() {
  while (attempts.held.size && Date.now() < drainEnd) await sleep(20);
}

async function main() {
  const trusted = credentials(args);
  for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => (window === 0 ? process.exit(4) : void drain(DRAIN_S, signal)));
  for (;;) {
    const services = [v1.WorkQueueService, v1.ReportQueueService].map((Service) => new Service(args.connect, trusted, options));
    const { error, leaseS } = await attach(...services);
    services.forEach((service) => service.close());
    const reason = error ? reasonOf(error, [...HOPELESS, 'INCARNATION_LOST']) : 'the stream ended';
    if (HOPELESS.includes(reason)) fail(`${args.connect} refuses this worker: ${error.details}`);
    if (reason === 'INCARNATION_LOST') incarnation = crypto.randomBytes(16); // still holding what is held
    const pauseS = 0.1 + Math.random() * (leaseS / 3 - 0.1); // full jitter: a thousand workers do not come back in one moment
    console.error(`${args.connect}: ${error?.details || reason}; dialling again in ${pauseS.toFixed(1)} s`);
    await sleep(pauseS * 1000);
  }
}

void main();
