// Says so where a page that is open hears nothing more of its server; all else works without scripts.
document.addEventListener("htmx:sse:error", () => {
  const told = document.createElement("p");
  told.className = "why";
  told.textContent = "This page is as it was: the server does not answer, or you are no longer signed in. Reload it.";
  document.getElementById("trouble")?.replaceChildren(told);
});
