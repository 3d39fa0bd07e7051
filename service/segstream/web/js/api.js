/** The service's HTTP API. */

import { askForKey, keyHeaders, storedKey } from "./api_key.js";

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** The JSON of a GET. Rejects with an ApiError; status 0: the service cannot be reached. */
export async function getJson(path) {
  return (await request(path)).json();
}

/** Whether the service takes sessions. */
export async function isReady() {
  try {
    await request("/readyz");
    return true;
  } catch (error) {
    if (error.status === 503) return false;
    throw error;
  }
}

export async function remove(path) {
  await request(path, { method: "DELETE" });
}

export async function postFile(path, file) {
  const headers = { "Content-Type": file.type || "application/octet-stream" };
  return (await request(path, { method: "POST", body: file, headers })).json();
}

async function request(path, options = {}) {
  let key = storedKey();
  let response = await send(path, options, key);
  while (response.status === 401) {
    await askForKey(key, await detailOf(response));
    key = storedKey();
    response = await send(path, options, key);
  }
  if (!response.ok) throw new ApiError(await detailOf(response), response.status);
  return response;
}

async function send(path, options, key) {
  const headers = { ...options.headers, ...keyHeaders(key) };
  try {
    return await fetch(path, { cache: "no-store", ...options, headers });
  } catch {
    throw new ApiError("The service cannot be reached.", 0);
  }
}

async function detailOf(response) {
  try {
    return (await response.json()).detail;
  } catch {
    return `The service answered ${response.status}.`;
  }
}
