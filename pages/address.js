// What is shown is in the address: `#/history?mark=BMW+i4` is the view "history" with a parameter.

let follow = () => {};

/** Give the view and the parameters that the address names. */
export function here() {
  const [, view, query] = location.hash.match(/^#?\/?([^?]*)\??(.*)$/s);
  return { view, parameters: new URLSearchParams(query) };
}

/** Go to a view: by a step in the browser's history, or in place of the last one. */
export function go(view, parameters, { replace = false, ...state } = {}) {
  const query = String(new URLSearchParams(parameters));
  history[replace ? "replaceState" : "pushState"](state, "", `#/${view}${query && "?"}${query}`);
  follow();
}

/** Open something over the view, which has a parameter of its own in the address. */
export function enter(name, value) {
  const { view, parameters } = here();
  parameters.set(name, value);
  go(view, parameters, { entered: true });
}

/** Close it: back to where it was opened, or in place where a link led to it. */
export function leave(name) {
  const { view, parameters } = here();
  if (!parameters.has(name)) return follow();
  if (history.state?.entered) return history.back();
  parameters.delete(name);
  go(view, parameters, { replace: true });
}

/** Call a function now and whenever the address changes. */
export function watch(callback) {
  follow = callback;
  addEventListener("popstate", callback);
  callback();
}
