// What scrolls must be reachable by keyboard: wide tables, which the theme wraps when it likes, code, and pictures.
const article = document.querySelector(".md-content__inner");
const mark = () => {
  for (const box of article.querySelectorAll(".md-typeset__scrollwrap, pre > code, .diagram")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
};
new ResizeObserver(mark).observe(article);
new MutationObserver(mark).observe(article, { childList: true, subtree: true });

// The recording plays when it comes into view, and not while nobody sees it.
const play = new IntersectionObserver((pictures) => {
  for (const { isIntersecting, target } of pictures) {
    if (!isIntersecting) continue;
    target.src += "#play";
    play.unobserve(target);
  }
}, { threshold: 0.4 });
for (const picture of article.querySelectorAll(".demo img")) play.observe(picture);
