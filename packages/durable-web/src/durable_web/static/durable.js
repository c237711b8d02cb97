// Keeps what a page shows where its server says nothing more of it, and says so. All but liveness works without scripts.
function tell() {
  const told = document.createElement("p");
  told.className = "why";
  told.textContent = "This page is as it was: the server does not answer, or you are no longer signed in. Reload it.";
  document.getElementById("trouble")?.replaceChildren(told);
}

// A redirect leads to where people sign in, which is nothing to show in the middle of a page.
document.addEventListener("htmx:config:request", (event) => { event.detail.ctx.request.redirect = "error"; });
document.addEventListener("htmx:before:response", (event) => {
  if (event.detail.ctx.response.raw.headers.get("content-type")?.startsWith("text/event-stream")) return;
  event.preventDefault();
  tell();
});
// A browser keeps six connections to a server: a tab that nobody has looked at yet takes none of them.
function watch() {
  if (document.hidden) return;
  document.removeEventListener("visibilitychange", watch);
  htmx.trigger("#live", "watch");
}
document.addEventListener("visibilitychange", watch);
addEventListener("load", watch);
document.addEventListener("htmx:sse:error", tell);
document.addEventListener("htmx:error", tell);
