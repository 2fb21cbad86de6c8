"use strict";
for (const stage of document.querySelectorAll(".stage")) {
  const slider = stage.querySelector("input");
  const follow = () => {
    stage.style.setProperty("--cut", slider.value + "%");
    slider.setAttribute("aria-valuetext", slider.value + " % " + slider.dataset.left);
  };
  slider.addEventListener("input", follow);
  follow();
}
