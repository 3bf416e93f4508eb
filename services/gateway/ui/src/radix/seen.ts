/** A cache that nobody sees is not asked for: on a phone's other tab, behind a hidden panel, scrolled away. */

import type { RefObject } from "preact";
import { useEffect } from "preact/hooks";
import { watchCache } from "./poll";

/** Ask for the cache while some of an element is on the screen. */
export function useCacheWhileSeen(element: RefObject<Element | null>): void {
  useEffect(() => {
    let stop: (() => void) | undefined;
    const observer = new IntersectionObserver((entries) => {
      const { width, height } = entries.at(-1)!.intersectionRect;
      if (width * height > 0) stop ??= watchCache();
      else {
        stop?.();
        stop = undefined;
      }
    });
    observer.observe(element.current!);
    return () => {
      observer.disconnect();
      stop?.();
    };
  }, []);
}
