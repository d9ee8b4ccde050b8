import { useQueryClient } from "@tanstack/react-query";
import { Link, Outlet, useLocation, useNavigate } from "@tanstack/react-router";
import { CircleUser, LogOut, Menu, Moon, Search, Sun, Wifi, WifiOff, X } from "lucide-react";
import { useEffect, useRef, useState } from "react";
import { line, type Link as Wire } from "../../api/live";
import { Trouble } from "../../parts/Show";
import { Gate } from "../access/Gate";
import { useMe } from "../access/me";
import { Palette } from "./Palette";
import { PAGES } from "./pages";
import { theme, turnTheme } from "./theme";

/** Lists are read again at most so often while events pour in; single Tasks follow their own feed. */
const REFRESH_MS = 100;

export function Shell() {
  return <Gate>{(signOut) => <Frame signOut={signOut} />}</Gate>;
}

const ENTRY = "flex items-center gap-2 rounded-md px-2 py-1.5 text-soft hover:bg-raised";

function Frame({ signOut }: { signOut: () => Promise<void> }) {
  const { me, may } = useMe();
  const link = useFeed();
  const [look, setLook] = useState(theme);
  const [palette, setPalette] = useState(false);
  const [menu, setMenu] = useState(false);
  const [leaving, setLeaving] = useState<unknown>(null);
  const navigate = useNavigate();
  const place = useLocation({ select: (location) => location.pathname });
  const main = useRef<HTMLElement>(null);
  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
        event.preventDefault();
        setPalette(true);
      }
      if (event.key === "Escape") setMenu(false);
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
  useEffect(() => setMenu(false), [place]);
  const pages = PAGES.filter(({ needs }) => !needs || may(needs));
  const Theme = look === "dark" ? Sun : Moon;
  const turn = () => {
    turnTheme();
    setLook(theme());
  };
  return (
    <div className="flex min-h-full flex-col md:flex-row">
      <a href="#main" className="sr-only focus:not-sr-only" onClick={(event) => { event.preventDefault(); main.current?.focus(); }}>
        Skip to the content
      </a>
      <header className="sticky top-0 z-10 border-b border-line bg-panel px-3 py-2 md:flex md:h-dvh md:w-56 md:shrink-0 md:flex-col md:overflow-y-auto md:border-r md:border-b-0 md:p-3">
        <div className="flex items-center gap-1 md:mb-4">
          <Link to="/" className="flex flex-1 items-center gap-2 px-1 font-semibold md:px-2 md:pt-1 md:text-base">
            <img src="/icon.svg" alt="" width={22} height={22} className="shrink-0" />
            Fettle
          </Link>
          <Live link={link} />
          <button type="button" className={`${ENTRY} md:hidden`} aria-label="Go to…" onClick={() => setPalette(true)}>
            <Search size={18} aria-hidden />
          </button>
          <button type="button" className={`${ENTRY} md:hidden`} aria-expanded={menu} aria-controls="pages" aria-label="Menu" onClick={() => setMenu(!menu)}>
            {menu ? <X size={18} aria-hidden /> : <Menu size={18} aria-hidden />}
          </button>
        </div>
        <div id="pages" className={`${menu ? "flex" : "hidden"} flex-col gap-1 max-md:pt-2 md:flex md:flex-1`}>
          <nav aria-label="Pages" className="flex flex-1 flex-col gap-0.5">
            {pages.map(({ to, label, Icon }) => (
              <Link key={to} to={to} activeOptions={{ exact: to === "/", includeSearch: false }} className={ENTRY} activeProps={{ className: "bg-raised !text-ink font-medium" }}>
                <Icon size={16} aria-hidden />
                {label}
              </Link>
            ))}
          </nav>
          <button type="button" className={`${ENTRY} max-md:hidden`} onClick={() => setPalette(true)}>
            <Search size={16} aria-hidden />
            Go to…
            <kbd className="ml-auto rounded border border-line px-1 text-xs" aria-hidden>Ctrl K</kbd>
          </button>
          <button type="button" className={ENTRY} onClick={turn}>
            <Theme size={16} aria-hidden />
            {look === "dark" ? "Light colours" : "Dark colours"}
          </button>
          <Link to="/account" className={ENTRY} activeProps={{ className: "bg-raised !text-ink font-medium" }}>
            <CircleUser size={16} aria-hidden className="shrink-0" />
            <span className="min-w-0 flex-1 truncate">
              <span className="sr-only">My account, </span>
              {me.via === "admin_key" ? "Admin key" : me.username}
            </span>
            <span className="text-xs">{me.role}</span>
          </Link>
          <button type="button" className={ENTRY} onClick={() => void signOut().catch(setLeaving)}>
            <LogOut size={16} aria-hidden />
            Sign out
          </button>
        </div>
      </header>
      <main id="main" ref={main} tabIndex={-1} className="min-w-0 flex-1 outline-none">
        {leaving !== null && (
          <div className="px-4 pt-4 sm:px-8">
            <Trouble error={leaving} again={() => { setLeaving(null); void signOut().catch(setLeaving); }} />
          </div>
        )}
        <Outlet />
      </main>
      {palette && (
        <Palette
          pages={pages}
          close={() => setPalette(false)}
          acts={[
            { label: look === "dark" ? "Light colours" : "Dark colours", act: turn },
            { label: "Sign out", act: () => void signOut().catch(setLeaving) },
          ]}
          go={(to) => void navigate({ to })}
        />
      )}
    </div>
  );
}

function Live({ link }: { link: Wire }) {
  const word = { live: "Live", connecting: "Connecting", lost: "Not live, trying again" }[link];
  return (
    <span role="status" title={word} className={`flex items-center gap-1.5 px-2 text-xs ${link === "live" ? "text-good" : "text-warn"}`}>
      {link === "live" ? <Wifi size={14} aria-hidden /> : <WifiOff size={14} aria-hidden />}
      <span className={link === "live" || link === "connecting" ? "" : "sr-only"}>{word}</span>
    </span>
  );
}

/** One feed for the whole page: whatever happens makes what is shown be read again. */
function useFeed(): Wire {
  const queries = useQueryClient();
  const [link, setLink] = useState<Wire>("connecting");
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const refresh = () => {
      timer ??= setTimeout(() => {
        timer = undefined;
        for (const name of ["tasks", "overview", "dead-jobs", "queue", "repositories"]) void queries.invalidateQueries({ queryKey: [name] });
      }, REFRESH_MS);
    };
    const stops = [line.onLink(setLink), line.watch("tasks", undefined, { event: refresh, begun: refresh, gap: refresh })];
    return () => {
      stops.forEach((stop) => stop());
      clearTimeout(timer);
    };
  }, [queries]);
  return link;
}
