// The API as this page uses it, by addresses that are relative to the page's own.

const PATIENCE = 30_000; // milliseconds; the API answers within ten seconds, or not at all

/** Who is logged in, and the description of the API. */
export const session = { token: sessionStorage.getItem("token"), account: null, description: null };

/** What was refused: the API's `sentence`, or where many things are wrong all its `errors`, and when to try again. */
export class Refusal extends Error {
  constructor(status, { Error: sentence = `The server answered ${status}`, Errors: errors = [sentence] }, seconds) {
    const time = new Date(Date.now() + seconds * 1000).toLocaleTimeString();
    super(seconds ? `${sentence}. You can try again in ${seconds} s, at ${time}.` : sentence);
    Object.assign(this, { status, sentence, errors });
  }
}

/** Give the fields of what the API describes by a name: their own names, labels and schemas. */
export function fieldsOf(name) {
  const { properties, required } = session.description.components.schemas[name];
  return Object.entries(properties).map(([name, schema]) => {
    const words = schema.title ?? name.replaceAll("_", " ");
    return { name, schema, required: required.includes(name), label: words[0].toUpperCase() + words.slice(1) };
  });
}

/** Begin with a token, or end: without one, and with the reason that is to be shown. */
export function begin(token, reason) {
  Object.assign(session, { token, account: null });
  if (token) sessionStorage.setItem("token", token);
  else sessionStorage.removeItem("token");
  document.dispatchEvent(new CustomEvent("session", { detail: reason }));
}

/**
 * Send a request; gives the data of the answer (a Blob for CSV) and a function for its headers. Throws a `Refusal`;
 * one of the token also ends the session. `progress` is told how much of a file was sent, from 0 to 1.
 */
export async function call(method, path, { query = {}, json, file, headers = {}, progress, signal } = {}) {
  const { token } = session;
  const given = Object.entries(query).filter(([, value]) => value);
  const request = new XMLHttpRequest(); // and not `fetch`, which does not tell the progress
  request.open(method, path + (given.length ? `?${new URLSearchParams(given)}` : ""));
  request.responseType = "blob";
  if (!file && headers.Accept === undefined) request.timeout = PATIENCE;
  if (token) request.setRequestHeader("Authorization", `Bearer ${token}`);
  if (json || file) request.setRequestHeader("Content-Type", json ? "application/json" : "text/csv");
  for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
  request.upload.onprogress = ({ loaded, total }) => progress?.(loaded / total);
  signal?.addEventListener("abort", () => request.abort());
  await new Promise((resolve) => {
    request.onloadend = resolve;
    request.send(json ? JSON.stringify(json) : file);
  });
  const { status, response } = request;
  if (!status) throw new Refusal(0, { Error: "The server cannot be reached. What you typed is kept. Try again." });
  const data = response.type.startsWith("application/json") ? JSON.parse(await response.text()) : response;
  if (status < 300) return { data, header: (name) => request.getResponseHeader(name) };
  const refusal = new Refusal(status, data, Number(request.getResponseHeader("Retry-After")));
  if (status === 401 && token && token === session.token) begin(null, `${refusal.sentence}. Log in again.`);
  throw refusal;
}

/** Give where the next page begins, as the Link of an answer has it in a parameter, or null. */
export function nextOf(header, parameter) {
  const target = header("Link")?.match(/<([^>]*)>; *rel="next"/)?.[1];
  return target ? new URL(target, location).searchParams.get(parameter) : null;
}
