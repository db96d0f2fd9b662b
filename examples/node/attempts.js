'use strict';
// What a worker holds: attempts from their assignment to the final verdict on their report. It runs them and knows nothing of streams.

const { PermanentError, tasks } = require('./tasks');

const RESULT_BYTES_MAX = 65536;
const FINAL = new Set(['ACCEPTED', 'DUPLICATE', 'SUPERSEDED', 'FENCED', 'UNKNOWN_TASK'].map((code) => `VERDICT_CODE_${code}`));

const seconds = (duration) => Number(duration?.seconds ?? 0) + (duration?.nanos ?? 0) / 1e9;
const nameOf = ({ job_id, index, epoch, attempt }) => [job_id, index, epoch, attempt].join(' ');

class Attempts {
  /** `ended` is called with each attempt that has an outcome to report. */
  constructor(slots, ended) {
    this.held = new Map(); // token -> attempt
    this.slots = slots;
    this.ended = ended;
    this.maxEpoch = 0n; // no epoch below the highest that was seen is obeyed
  }

  /** The held set as HeldGroups: attempts of one job and epoch side by side. */
  groups() {
    const found = new Map();
    for (const { job_id, epoch, index, attempt } of this.held.values()) {
      const key = `${job_id} ${epoch}`;
      if (!found.has(key)) found.set(key, { job_id, epoch, indices: [], attempts: [] });
      found.get(key).indices.push(index);
      found.get(key).attempts.push(attempt);
    }
    return [...found.values()];
  }

  /** Attempts that wait for a final verdict. */
  reports() {
    return [...this.held.values()].filter((attempt) => attempt.outcome);
  }

  take(taskGroups) {
    for (const { job_id, epoch, template, inputs, assignments } of taskGroups ?? []) {
      if (BigInt(epoch) < this.maxEpoch) continue; // from an owner of the past
      for (const { index = '0', attempt, payload } of assignments) {
        const one = { job_id, epoch, index, attempt, payload, template, inputs, abort: new AbortController() };
        if (!this.held.has(nameOf(one))) this.held.set(nameOf(one), one); // a token twice is one attempt
      }
    }
    this.start();
  }

  start() {
    const open = [...this.held.values()].filter((attempt) => !attempt.outcome);
    const free = this.slots - open.filter((attempt) => attempt.started).length;
    for (const attempt of open.filter((a) => !a.started).slice(0, Math.max(free, 0))) void this.run(attempt);
  }

  async run(attempt) {
    attempt.started = process.hrtime.bigint();
    const { abort, template } = attempt;
    const limit = template.timeouts?.run && setTimeout(() => abort.abort('ENDING_TIMED_OUT'), seconds(template.timeouts.run) * 1000);
    let outcome = await outcomeOf(attempt);
    clearTimeout(limit);
    if (abort.signal.aborted) outcome = { ending: abort.signal.reason, failure: outcome.failure };
    this.finish(attempt, { ...outcome, run_us: String((process.hrtime.bigint() - attempt.started) / 1000n) });
  }

  finish(attempt, outcome) {
    if (this.held.has(nameOf(attempt))) { // else forgotten meanwhile
      attempt.outcome = outcome;
      this.ended(attempt);
    }
    this.start();
  }

  /** Calls `act` with those attempts of HeldGroups that are held; others are ignored. */
  each(heldGroups, act) {
    for (const group of heldGroups ?? []) {
      group.indices.forEach((index, i) => {
        const attempt = this.held.get(nameOf({ ...group, index, attempt: group.attempts[i] }));
        if (attempt) act(attempt);
      });
    }
  }

  /** Stop and report the ending: ENDING_REVOKED or ENDING_RELEASED. */
  stop(attempt, ending) {
    if (attempt.started) attempt.abort.abort(ending);
    else this.finish(attempt, { ending, never_started: true });
  }

  /** Stop without a word: the orchestrator does not wait for a report any more. */
  forget(attempt) {
    this.held.delete(nameOf(attempt));
    attempt.abort.abort('ENDING_REVOKED');
  }

  /** Act on the verdict on some attempts; true when it is final. */
  judged(code, attempts) {
    if (!FINAL.has(code)) return false;
    for (const attempt of attempts) this.held.delete(nameOf(attempt));
    return true;
  }
}

async function outcomeOf({ template, inputs, payload, abort }) {
  const run = tasks[template.type];
  if (!run) return failed('PERMANENT', 'UnknownTaskType', `this worker does not know ${template.type}`);
  if (inputs?.length) return failed('PERMANENT', 'Unsupported', 'this worker does not fetch results of other jobs');
  let call;
  let common;
  try { // [args...] or {args, kwargs}; the job's common keyword arguments lie under those of the payload
    call = JSON.parse(payload?.toString() || '[]');
    common = JSON.parse(template.common_payload?.toString() || '{}');
  } catch (error) {
    return failed('PERMANENT', 'UndecodableInput', error.message);
  }
  const { args = [], kwargs = {}, $blob } = Array.isArray(call) ? { args: call } : call;
  if ($blob) return failed('PERMANENT', 'Unsupported', 'this worker does not read payloads from Storage');
  try {
    const result = Buffer.from(JSON.stringify((await run(args, { ...common, ...kwargs }, abort.signal)) ?? null));
    if (result.length <= RESULT_BYTES_MAX) return { ending: 'ENDING_SUCCEEDED', result };
    return failed('PERMANENT', 'ResultTooLarge', `${result.length} bytes; this worker sends ${RESULT_BYTES_MAX} at most`);
  } catch (error) {
    return failed(error instanceof PermanentError ? 'PERMANENT' : 'APP', error.name, error.message, error.stack);
  }
}

function failed(kindOfFailure, kind, message, traceback = '') {
  const failure = { failure_class: `FAILURE_CLASS_${kindOfFailure}`, kind, message: String(message).slice(0, 4096), traceback: traceback.slice(0, 4096) };
  return { ending: 'ENDING_FAILED', failure };
}

module.exports = { Attempts, seconds };
