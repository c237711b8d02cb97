// What scrolls must be reachable by keyboard: wide tables, which the theme wraps when it likes, code, and the demo's picture.
const article = document.querySelector(".md-content__inner");
const mark = () => {
  for (const box of article.querySelectorAll(".md-typeset__scrollwrap, pre > code, .demo")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
};
new ResizeObserver(mark).observe(article);
new MutationObserver(mark).observe(article, { childList: true, subtree: true });
